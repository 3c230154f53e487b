"""MelHuBERT's filter bank in rows: torch's own front end for every remainder of the length."""

from __future__ import annotations

import pytest
import torch
from reuse_distill.export.targets.executorch.filter_bank_rows import FilterBankRows
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.front_ends.filter_bank import FilterBankFrontEnd


def front_end(stacked: int) -> FilterBankFrontEnd:
    plain = FilterBankFrontEnd(bands=40, stacked=stacked).eval()
    generator = torch.Generator().manual_seed(0)
    plain.mean.copy_(torch.randn(40, generator=generator))
    plain.std.copy_(torch.rand(40, generator=generator) + 0.5)
    return plain


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 719, 720, 879, 880, 3_333])
def test_frames_are_those_of_torch(samples: int) -> None:
    plain = front_end(2)
    wave = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(samples))
    with torch.no_grad():
        expected = plain(wave)[0].T  # [F, 80]
        found = FilterBankRows(plain)(wave)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_frames_of_10_ms_are_refused() -> None:
    with pytest.raises(RdError, match="frames of 10 ms are not possible"):
        FilterBankRows(front_end(1))
