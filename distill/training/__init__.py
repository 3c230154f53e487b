"""The training loop: objective, steps, run folder, resume."""

from reuse_distill.distill.training.training_run import RunSettings, run

__all__ = ["RunSettings", "run"]
