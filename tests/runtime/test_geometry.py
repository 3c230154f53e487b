"""runtime/geometry.py and manifest.Geometry: frames, samples and milliseconds."""

from hypothesis import given
from hypothesis import strategies as st
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.geometry import frames_for, samples_for


def convolved(samples):
    """The length rule of the seven convolutions, one after another."""
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        samples = (samples - kernel) // stride + 1 if samples >= kernel else 0
    return samples


def test_frames_are_what_the_convolutions_give():
    assert [frames_for(n) for n in range(5000)] == [convolved(n) for n in range(5000)]


@given(st.integers(1, 1_000_000))
def test_the_fewest_samples_of_so_many_frames(frames):
    assert frames_for(samples_for(frames)) == frames
    assert frames_for(samples_for(frames) - 1) == frames - 1


def test_no_frames():
    assert samples_for(0) == 0
    assert [frames_for(n) for n in (0, 1, 399, 400)] == [0, 0, 0, 1]


def test_latency_of_a_chunk():
    geometry = Geometry(chunk_frames=8, lookahead_frames=4)
    assert (geometry.worst_latency_ms, geometry.mean_latency_ms) == (245.0, 175.0)
    assert Geometry(chunk_frames=1).worst_latency_ms == Geometry(chunk_frames=1).mean_latency_ms == 25.0
