"""``benchmarks.state_moves``: a stream that moves gives the frames of one that stays, and says what it cost."""

from __future__ import annotations

from pathlib import Path

from benchmarks.state_moves import measure

BUNDLES = Path(__file__).resolve().parents[2] / "runtime" / "bundles"


def test_a_stream_that_moves_between_two_sessions_gives_the_same_frames() -> None:
    shipped = BUNDLES / "pocket-stream"
    result = measure([shipped, shipped], rounds=2, seconds=1.0)
    assert result["moves"] == 4
    assert result["route"] == ["onnx"] * 5
    (row,) = result["against_alone"]
    assert row["max_abs"] <= 1e-6 * result["largest_feature"]
    assert row["mean_cosine"] > 0.999999
    assert 0 < result["snapshot_bytes"] < 1_500_000
    assert result["move_ms"]["max"] >= result["move_ms"]["median"] > 0
