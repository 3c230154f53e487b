"""Upgrade rehearsal: the same bundle under two versions of the software, compared in everything that can break."""
