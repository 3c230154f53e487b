"""Importing the evaluator of MIL operations registers them all: a tidied import had left it with none."""

from __future__ import annotations

import subprocess
import sys

CODE = (
    "from reuse_distill.export.targets.coreml.evaluator import Evaluator; "
    "from reuse_distill.export.targets.coreml.evaluator.registry import OPERATIONS; print(' '.join(OPERATIONS))"
)


def test_the_operations_of_a_layer_are_there() -> None:
    known = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    assert {"add", "concat", "conv", "gelu", "layer_norm", "linear", "matmul", "reshape", "softmax"} <= set(known)
