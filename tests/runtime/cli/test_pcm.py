"""runtime/cli/stream_inputs.py: bytes from a pipe, in whatever pieces they come."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reuse_distill.runtime.cli.stream_inputs import pcm_blocks
from reuse_distill.runtime.errors import RdError


class Pipe(io.RawIOBase):
    """Gives its bytes in the pieces that it was told to."""

    def __init__(self, data, sizes):
        self.data, self.sizes = data, list(sizes)

    def read(self, size=-1):
        size = min(size, self.sizes.pop(0)) if self.sizes else size
        piece, self.data = self.data[:size], self.data[size:]
        return piece


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(0, 500), st.integers(1, 3))
def test_pieces_do_not_matter(sizes, samples, channels):
    pcm = np.random.default_rng(0).integers(-32768, 32767, (samples, channels)).astype("<i2")
    blocks = list(pcm_blocks(Pipe(pcm.tobytes(), sizes), format="s16le", channels=channels, block_samples=64))
    found = np.concatenate([np.zeros(0, np.float32), *blocks])
    assert np.allclose(found, pcm.astype(np.float64).mean(1) / 32768, atol=1e-7)
    assert all(0 < len(block) <= 64 for block in blocks)


def test_floats():
    pcm = np.float32([0.5, -0.25, 1.5])
    (block,) = pcm_blocks(io.BytesIO(pcm.astype("<f4").tobytes()), format="f32le")
    assert block.tolist() == pcm.tolist()


def test_an_end_within_a_sample_is_told():
    with pytest.raises(RdError, match=r"ends with 1 of the 2 bytes of sample 10\n\nhint: is it really s16le with 1"):
        list(pcm_blocks(io.BytesIO(bytes(21)), format="s16le"))
    with pytest.raises(RdError, match=r"ends with 3 of the 4 bytes of sample 5\n\nhint: .*2 channels"):
        list(pcm_blocks(io.BytesIO(bytes(23)), format="s16le", channels=2))


def test_bad_samples_are_named_by_their_place():
    pcm = np.zeros(1000, "<f4")
    pcm[777] = np.inf
    with pytest.raises(RdError, match="sample 777 is inf"):
        list(pcm_blocks(io.BytesIO(pcm.tobytes()), format="f32le", block_samples=100))


def test_unknown_formats_are_refused():
    with pytest.raises(RdError, match=r"format 's16be'\n\nhint: did you mean 's16le'"):
        list(pcm_blocks(io.BytesIO(), format="s16be"))
    with pytest.raises(RdError, match="0 channels"):
        list(pcm_blocks(io.BytesIO(), format="s16le", channels=0))


@pytest.mark.parametrize(
    ("start", "kind"), [(b"RIFF", "WAV"), (b"fLaC", "FLAC"), (b"OggS", "Ogg"), (b"ID3\x03", "MP3")]
)
@pytest.mark.parametrize("sizes", [[], [1, 1, 1, 1, 1, 1], [3, 2]])
def test_files_with_a_header_are_no_raw_pcm(start, kind, sizes):
    with pytest.raises(RdError, match=rf"standard input is a {kind} file, raw PCM is expected\n\nhint: give the file"):
        list(pcm_blocks(Pipe(start + bytes(1000), sizes), format="f32le"))
