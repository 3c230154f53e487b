"""LiteRT's converter and quantiser, imported when needed."""

from __future__ import annotations

import os
from typing import Any

from reuse_distill.export.targets.vendor_packages import imported
from reuse_distill.runtime.errors import install_hint

HINT = install_hint("export", "litert-export")


def load_converter() -> Any:
    """``litert_torch``; raises RdError that names the extra where it is missing."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    return load("litert_torch")


def load(module: str) -> Any:
    """The module ``module`` of the converter or the quantiser; raises RdError that names the extra."""
    return imported(module, hint=HINT)
