"""Is the student any good? Linear probes over frozen features, beside log-mel, an untrained student and the teacher."""

from reuse_distill.distill.evaluation.evaluate import evaluate
from reuse_distill.distill.evaluation.features import Features

__all__ = ["Features", "evaluate"]
