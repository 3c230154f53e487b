"""MelHuBERT's filter bank in operations that XNNPACK takes: two dimensions, the second of size 1.

Shape legend: T samples, F frames (20 ms), N filters.
"""

from __future__ import annotations

import torch
from reuse_distill.export.targets.executorch.row_positions import in_two_dimensions, rows
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES
from reuse_distill.student.front_ends.filter_bank import FLOOR, FilterBankFrontEnd
from torch import Tensor, nn

STACKED = 2  # frames of 10 ms in one of 20 ms


class FilterBankRows(nn.Module):
    """[1, T] -> [F, 2 N], for any number of samples: what ``FilterBankFrontEnd`` gives, every second frame by itself.

    A frame of 20 ms is two log powers, of the 400 samples from 320 f and of those from 320 f + 160 on. The second one
    is zeros where not all of these exist, which happens in the last frame alone.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, plain: FilterBankFrontEnd) -> None:
        super().__init__()
        if plain.stacked != STACKED:
            raise RdError(f"frames of {10 * plain.stacked} ms are not possible here, frames of 20 ms are")
        bank = plain.bank
        waves = (one.transpose(1, 2).flatten(1)[:, None] for one in (bank.cosines, bank.sines))  # [256, 1, 400]
        cosines, sines = (in_two_dimensions(fixed_conv(one, stride=HOP_SAMPLES)) for one in waves)
        filters = in_two_dimensions(fixed_conv(bank.filters))
        self.log_mel = nn.ModuleDict({"cosines": cosines, "sines": sines, "filters": filters})
        self.register_buffer("scale", (1 / plain.std)[:, None, None].clone())
        self.register_buffer("shift", (-plain.mean / plain.std)[:, None, None].clone())

    def forward(self, wave: Tensor, frame_valid: Tensor | None = None) -> Tensor:
        """A frame sees no sample after its own, so ``frame_valid`` changes nothing."""
        later = torch.cat([wave[:, MEL_HOP_SAMPLES:], torch.zeros(1, MEL_HOP_SAMPLES)], dim=1)
        first, second = self._normed(wave), self._normed(later)
        last = MEL_WINDOW_SAMPLES + MEL_HOP_SAMPLES + HOP_SAMPLES * torch.arange(first.shape[2])
        exists = (last <= wave.shape[1]).to(first.dtype)[:, None]  # [F, 1]
        return rows(torch.cat([first, second * exists], dim=1))

    def _normed(self, wave: Tensor) -> Tensor:
        """[1, T] -> [1, N, F, 1]."""
        x = wave[:, None, :, None]
        cosine, sine = self.log_mel["cosines"](x), self.log_mel["sines"](x)
        power = self.log_mel["filters"](cosine * cosine + sine * sine).clamp(min=FLOOR)
        return torch.log(power) * self.scale + self.shift


def fixed_conv(weights: Tensor, *, stride: int = 1) -> nn.Conv1d:
    """The convolution without bias that has ``weights`` [O, I, K]."""
    conv = nn.Conv1d(weights.shape[1], weights.shape[0], weights.shape[2], stride, bias=False)
    with torch.no_grad():
        conv.weight.copy_(weights)
    return conv
