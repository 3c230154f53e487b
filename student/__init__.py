"""The student: a small speech encoder that reuses attention maps."""

from reuse_distill.student.attention import frames_for_lengths
from reuse_distill.student.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from reuse_distill.student.config import ChunkContext, ChunkSchedule, StudentConfig
from reuse_distill.student.model import Student, StudentOutput
from reuse_distill.student.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "ChunkContext",
    "ChunkSchedule",
    "Student",
    "StudentConfig",
    "StudentOutput",
    "frames_for_lengths",
    "load_checkpoint",
    "preset",
    "save_checkpoint",
]
