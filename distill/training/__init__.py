"""The training loop: objective, steps, run folder, resume."""

from distill.training.run import RunSettings, run

__all__ = ["RunSettings", "run"]
