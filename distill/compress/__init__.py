"""Compression beyond distillation: pruning and low-rank factors (arXiv 2211.09949), with recovery by distillation.

One method per file, each a pure function from a student to a smaller student (or to a sparser one). Heads, rows and
ranks are physically removed: the configuration says the new shapes, and everything that reads it follows.
"""
