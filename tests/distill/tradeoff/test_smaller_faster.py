"""Which pairs count as smaller, and when the smaller one is faster."""

from __future__ import annotations

from reuse_distill.distill.tradeoff.side_by_side import smaller_and_faster


def row(name: str, macs: float, *, precision: str = "fp32") -> dict:
    return {"name": name, "precision": precision, "nonzero_parameters": 1, "superb_macs": macs, "artifact_bytes": 1}


def test_pairs_of_one_precision_that_differ() -> None:
    rows = [row("whole", 100), row("close", 96), row("half", 50), row("sparse", 10), row("other", 1, precision="int8")]
    turns = {"whole": [1.0] * 10, "close": [0.9] * 10, "half": [0.5] * 10, "sparse": [1.1] * 10, "other": [9.0] * 10}
    [found] = smaller_and_faster(rows, {"2": turns})
    assert found["precision"] == "fp32" and found["count"] == "MACs", "equal counts make no pairs"
    assert found["pairs"] == 5, "close is not 5 % smaller than whole"
    assert found["faster"] == {"2": 2}, "half than whole and close"
    assert found["exceptions"][0] == ["sparse", "whole"] and len(found["exceptions"]) == 3


def test_faster_in_nine_of_ten_turns_and_at_one_length_at_least() -> None:
    rows = [row("large", 100), row("small", 50)]
    once, twice = [0.5] * 9 + [2.0], [0.5] * 8 + [2.0] * 2
    lengths = {"2": {"large": [1.0] * 10, "small": twice}, "10": {"large": [1.0] * 10, "small": once}}
    [found] = smaller_and_faster(rows, lengths)
    assert found["faster"] == {"2": 0, "10": 1} and found["exceptions"] == []
    [never] = smaller_and_faster(rows, {"2": lengths["2"]})
    assert never["exceptions"] == [["small", "large"]]
