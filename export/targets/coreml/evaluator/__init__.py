"""A NumPy evaluator for the MIL operations that our graphs use: the package's numbers on any machine."""

from reuse_distill.export.targets.coreml.evaluator.machine import Evaluator

__all__ = ["Evaluator"]
