"""Our students as an s3prl upstream, so that the real SUPERB can be run where its data is.

s3prl wants a class with ``forward(list of waves) -> {"hidden_states": [...]}`` and ``get_downsample_rates``. It needs
nothing of s3prl itself: register it there with a ``hubconf.py`` of two lines,

    from reuse_distill.distill.upstream import UpstreamExpert
    def reuse_student(ckpt, *args, **kwargs): return UpstreamExpert(ckpt, **kwargs)

and run ``run_downstream.py -u reuse_student -k CHECKPOINT …``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reuse_distill.runtime.geometry import HOP_SAMPLES
from reuse_distill.student import load_checkpoint
from torch import Tensor, nn


class UpstreamExpert(nn.Module):
    """A checkpoint folder as frozen features. ``features``: heads | hidden | auto (heads where there are some)."""

    def __init__(self, ckpt: str, model_config: str | None = None, *, features: str = "auto", **_: object) -> None:
        super().__init__()
        self.model = load_checkpoint(ckpt)
        self.heads = self.model.proj_head is not None if features == "auto" else features == "heads"

    def get_downsample_rates(self, key: str) -> int:
        """Samples per frame."""
        return HOP_SAMPLES

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, object]:
        """Waves (T,) of 16 kHz -> ``hidden_states``: per layer (B, F, C), padded frames zero; ``last_hidden_state``.

        An utterance in a batch gives what it gives alone: padding is never attended to and enters no statistic.
        """
        lengths = torch.tensor([len(wave) for wave in wavs], device=wavs[0].device)
        batch = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True)
        output = self.model(batch, lengths, context=self.model.config.context)
        layers = output.projections if self.heads else output.layers
        states = tuple(layer.masked_fill(output.padding[..., None], 0.0) for layer in layers)
        return {"hidden_states": states, "last_hidden_state": states[-1]}
