"""Is the student any good? Linear probes over frozen features, beside log-mel, an untrained student and the teacher."""

from distill.evaluation.evaluate import evaluate
from distill.evaluation.features import Features

__all__ = ["Features", "evaluate"]
