"""transformers, imported when it is needed and without the chatter of its optional parts."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

from reuse_distill.runtime.errors import RdError, install_hint

# torchao, which transformers imports where it is installed, reports kernels of other machines as missing.
CHATTER = ("torchao", "torch.utils._pytree")


@cache
def transformers() -> Any:
    """The package; raises RdError that names the extra where it is missing."""
    loggers = [logging.getLogger(name) for name in CHATTER]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        import transformers

        transformers.PreTrainedModel  # noqa: B018  (imported with its optional parts by being named)
    except ImportError as error:
        raise RdError(f"{error.name} is not installed", hint=install_hint("distill")) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    # Its WavLM gives torch masks of two types, which torch takes and warns of.
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
