"""What stands on top of an encoder: the contract of a head's output, and NumPy decoders that turn it into results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reuse_distill.runtime.tasks.ctc_decode import align
    from reuse_distill.runtime.tasks.decoder import Decoder, TaskEvent, TaskStream, decode, decoder_of

from reuse_distill.runtime.tasks.contract import TASK_KINDS, TaskOutput

__all__ = ["TASK_KINDS", "Decoder", "TaskEvent", "TaskOutput", "TaskStream", "align", "decode", "decoder_of"]

_DECODER = ("Decoder", "TaskEvent", "TaskStream", "decode", "decoder_of")


def __getattr__(name: str) -> Any:
    """The decoders, imported when needed: the contract needs no NumPy, and command lines that explain neither."""
    if name not in __all__:
        raise AttributeError(f"module 'reuse_distill.runtime.tasks' has no attribute {name!r}")
    if name in _DECODER:
        from reuse_distill.runtime.tasks import decoder

        return getattr(decoder, name)
    from reuse_distill.runtime.tasks.ctc_decode import align

    return align
