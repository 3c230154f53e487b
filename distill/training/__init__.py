"""The training loop: objective, steps, run folder, resume."""

from reuse_distill.distill.training.launch import RunSettings
from reuse_distill.distill.training.training_run import run

__all__ = ["RunSettings", "run"]
