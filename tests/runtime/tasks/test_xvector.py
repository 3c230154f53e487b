"""X-vectors in NumPy: exact in a stream, whatever its cuts; the file of a bundle is read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput, TaskStream, decode, decoder_of
from reuse_distill.runtime.tasks.xvector import XVectorDecoder, XVectorWeights, read_xvector

OUTPUT = TaskOutput("speaker", "xvector", 6, weights="speaker.npz")


def weights(**changes: Any) -> XVectorWeights:
    random = np.random.default_rng(0)

    def linear(width: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        return random.standard_normal((width, inputs)).astype(np.float32), np.ones(width, np.float32)

    parts = {"tdnn": (linear(5, 3 * 6), linear(4, 2 * 5)), "sizes": ((3, 2), (2, 1)), "vector": linear(3, 8)}
    return XVectorWeights(**{**parts, "logits": linear(2, 3), **changes})


ROWS = np.random.default_rng(1).standard_normal((120, 6)).astype(np.float32)


def straight(rows: np.ndarray, w: XVectorWeights) -> np.ndarray:
    """By the definition, frame by frame, in float64."""
    x = rows.astype(np.float64)
    for (weight, bias), (kernel, dilation) in zip(w.tdnn, w.sizes, strict=True):
        count = len(x) - (kernel - 1) * dilation
        seen = [np.concatenate([x[t + i * dilation] for i in range(kernel)]) for t in range(count)]
        x = np.stack([np.maximum(weight @ one + bias, 0) for one in seen])
    return np.asarray(w.vector[0] @ np.concatenate([x.mean(0), x.std(0, ddof=1)]) + w.vector[1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=8), st.integers(7, 120))
def test_a_stream_gives_the_same_bits_however_it_is_cut(cuts: list[int], frames: int) -> None:
    decoder, rows = XVectorDecoder(OUTPUT, weights()), ROWS[:frames]
    (whole,) = decode(decoder, rows)
    stream = TaskStream(decoder)
    for part in np.split(rows, sorted(min(cut, frames) for cut in cuts)):
        assert stream.push(part) == []
    assert stream.finish() == [whole] and (whole.start_s, whole.end_s) == (0, frames / 50)
    assert np.abs(np.array(whole.vector) - straight(rows, weights())).max() < 1e-5


def test_the_vector_so_far_is_there_at_any_time() -> None:
    decoder = XVectorDecoder(OUTPUT, weights())
    assert decoder.least_frames == 7
    state = decoder.start()
    for count in (6, 7, 80):
        state, _ = decoder.step(decoder.start(), ROWS[:count])
        vector = decoder.vector(state)
        assert (vector is None) == (count < 7)
        if vector is not None:
            assert np.abs(vector - straight(ROWS[:count], weights())).max() < 1e-5
            assert decoder.logits(vector).shape == (2,)
    assert decoder.finish(decoder.start()) == []
    with pytest.raises(RdError, match="an x-vector needs its weights"):
        decoder_of(OUTPUT)


def test_the_file_is_read_strictly(tmp_path: Path) -> None:
    file, arrays = tmp_path / "speaker.npz", weights().arrays()
    np.savez(file, allow_pickle=False, **arrays)
    decoder = decoder_of(OUTPUT, read_xvector(file, OUTPUT))
    assert decode(decoder, ROWS) == decode(XVectorDecoder(OUTPUT, weights()), ROWS)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"tdnn_1_bias": np.zeros(9, np.float32)}, "time-delay layer 2 has shapes"),
        ({"vector_weight": np.zeros((3, 9), np.float32)}, "the vector's layer has shapes"),
        ({"logits_bias": np.zeros(2, np.int64)}, "'logits_bias' is missing or no numbers"),
        ({"tdnn_sizes": np.array([[3, 10**9], [2, 1]])}, "are not possible"),
        ({"tdnn_sizes": np.array([[0, 1], [2, 1]])}, "are not possible"),
        ({"tdnn_sizes": np.array([[4, 1], [2, 1]])}, "with a kernel of 4"),
        ({"tdnn_sizes": np.zeros((0, 2), np.int64)}, r"tdnn_sizes of shape \(0, 2\)"),
        ({"vector_bias": np.full(3, np.nan, np.float32)}, "holds a NaN"),
    ]
    for changes, message in bad:
        np.savez(file, allow_pickle=False, **{**arrays, **changes})
        with pytest.raises(RdError, match=message):
            read_xvector(file, OUTPUT)
    np.savez(file, allow_pickle=False, **arrays)
    wider = TaskOutput("speaker", "xvector", 7, weights="speaker.npz")
    with pytest.raises(RdError, match="takes rows of 6 numbers, head 'speaker' gives 7"):
        read_xvector(file, wider)


@pytest.mark.parametrize(
    ("kind", "file"), [("xvector", ""), ("xvector", "../x.npz"), ("xvector", "x.bin"), ("projection", "x.npz")]
)
def test_a_contract_names_a_file_of_the_bundle(kind: str, file: str) -> None:
    with pytest.raises(RdError, match=r"head 'speaker': weights"):
        TaskOutput("speaker", kind, 6, weights=file)
