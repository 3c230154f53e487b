"""ExecuTorch's own packages, imported when needed."""

from __future__ import annotations

from typing import Any

from reuse_distill.export.targets.vendor_packages import imported
from reuse_distill.runtime.errors import install_hint

HINT = install_hint("export", "executorch")


def load(module: str) -> Any:
    """The module ``module`` of ExecuTorch or torchao; raises RdError that names the extra where it is missing."""
    return imported(module, hint=HINT)
