"""The student: a small speech encoder that reuses attention maps."""

from student.checkpoint import load_checkpoint, save_checkpoint
from student.config import ChunkContext, StudentConfig
from student.context import frames_for_lengths
from student.model import Student, StudentOutput
from student.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "ChunkContext",
    "Student",
    "StudentConfig",
    "StudentOutput",
    "frames_for_lengths",
    "load_checkpoint",
    "preset",
    "save_checkpoint",
]
