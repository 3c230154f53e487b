"""What stands on top of an encoder: the contract of a head's output, and NumPy decoders that turn it into results."""

from reuse_distill.runtime.tasks.contract import TASK_KINDS, TaskOutput
from reuse_distill.runtime.tasks.ctc_align import align
from reuse_distill.runtime.tasks.decoder import Decoder, TaskEvent, TaskStream, decode, decoder_of

__all__ = ["TASK_KINDS", "Decoder", "TaskEvent", "TaskOutput", "TaskStream", "align", "decode", "decoder_of"]
