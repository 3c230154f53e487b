"""Audio to batches: find utterances, plan an epoch, read, crop and pad."""

from reuse_distill.distill.data.batches import Batch, BatchReader
from reuse_distill.distill.data.plan import plan_epoch
from reuse_distill.distill.data.utterances import Scan, Skipped, Utterance, find_utterances

__all__ = ["Batch", "BatchReader", "Scan", "Skipped", "Utterance", "find_utterances", "plan_epoch"]
