"""Heads: trained on frozen features of a student, judged with intervals, kept as folders that rd-export takes."""
