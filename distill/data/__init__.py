"""Audio to batches: find utterances, plan an epoch, read, crop and pad."""

from distill.data.batches import Batch, BatchReader
from distill.data.damage import Skipped
from distill.data.plan import plan_epoch
from distill.data.utterances import Scan, Utterance, find_utterances

__all__ = ["Batch", "BatchReader", "Scan", "Skipped", "Utterance", "find_utterances", "plan_epoch"]
