"""The training loop. To read it from top to bottom: ``training_run``, ``loop``, ``objective``; the rest serves these.

``pairing`` checks that a recipe, a teacher and a student fit; ``initial_student`` makes the student; ``launch`` starts
processes; ``held_out`` measures and keeps the best; ``run_folder`` writes and resumes; ``training_progress`` shows.
"""

from reuse_distill.distill.training.launch import RunSettings
from reuse_distill.distill.training.training_run import run

__all__ = ["RunSettings", "run"]
