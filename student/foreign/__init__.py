"""Encoders of other libraries: one reader for teachers and for export, without executing or importing what it reads."""

from reuse_distill.student.foreign.foreign_checkpoint import ForeignCheckpoint, is_foreign, read_foreign
from reuse_distill.student.foreign.foreign_encoder import student_of

__all__ = ["ForeignCheckpoint", "is_foreign", "read_foreign", "student_of"]
