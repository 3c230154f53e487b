"""LiteRT's converter and quantiser: imported when needed, quiet, their failures in their own words."""

from __future__ import annotations

import importlib
import os
from typing import Any

from reuse_distill.export.targets.executorch.executorch_vendor import quiet
from reuse_distill.runtime.errors import RdError, install_hint

HINT = install_hint("export", "litert-export")
VERIFIED = "see constraints.txt for the versions that this was verified with"


def load_converter() -> Any:
    """``litert_torch``; raises RdError that names the extra where it is missing."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    return load("litert_torch")


def load(module: str) -> Any:
    """The module ``module`` of the converter or the quantiser; raises RdError that names the extra."""
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise RdError(f"{error.name or module} is not installed", hint=HINT) from None
