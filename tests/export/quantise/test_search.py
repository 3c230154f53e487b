"""The search on made-up drifts with known answers: order, interactions, and a limit that cannot be met."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from reuse_distill.export.quantise.search import Limits, Point, block_macs, search
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.cost import macs
from reuse_distill.student.layer_shape import ATTENTION_PARTS


class World:
    """Blocks whose drifts add up, plus ``together`` where two given blocks are both in int8.

    ``own``: what blocks in int8 add to the drift of the bundle's own recording.
    """

    def __init__(
        self,
        drifts: dict[str, float],
        pair: tuple[str, str] | None = None,
        together: float = 0.0,
        own: dict[str, float] | None = None,
    ) -> None:
        self.drifts, self.pair, self.together, self.own, self.asked = drifts, pair, together, own or {}, 0

    def measure(self, in_float: Sequence[str]) -> Point:
        self.asked += 1
        small = [name for name in self.drifts if name not in in_float]
        extra = self.together if self.pair and all(name in small for name in self.pair) else 0.0
        own = sum(self.own.get(name, 0.0) for name in small)
        return Point(tuple(in_float), 1e-6 + extra + sum(self.drifts[name] for name in small), own, 100 - len(small))


def within(limit: float, own: float = 0.01) -> Limits:
    return Limits(limit, own)


def test_nothing_goes_to_float_that_need_not() -> None:
    world = World({"a": 0.001, "b": 0.002})
    found = search({"a": 1, "b": 1}, world.measure, within(0.005))
    assert found.chosen.in_float == () and set(found.alone) == {"a", "b"}
    assert found.floor.in_float == ("a", "b")


def test_the_most_drift_per_saved_mac_goes_first() -> None:
    """a drifts most, but b drifts more for what it saves."""
    world = World({"a": 0.006, "b": 0.004, "c": 0.001})
    found = search({"a": 10, "b": 1, "c": 1}, world.measure, within(0.0075))
    assert found.chosen.in_float == ("b",)
    assert [point.in_float for point in found.frontier] == [(), ("b",)]
    assert found.alone["a"].drift == pytest.approx(0.006, abs=1e-5)


def test_interactions_are_measured_and_not_assumed() -> None:
    """Alone the blocks would pass together (0.002); measured together they do not."""
    world = World({"a": 0.001, "b": 0.001}, pair=("a", "b"), together=0.1)
    found = search({"a": 1, "b": 2}, world.measure, within(0.005))
    assert len(found.chosen.in_float) == 1 and found.chosen.drift <= 0.005


def test_a_block_that_need_not_stay_goes_back() -> None:
    """The order takes `small` and then `big` to float; `big` alone is enough."""
    world = World({"small": 0.003, "big": 0.02})
    found = search({"small": 1, "big": 100}, world.measure, within(0.005))
    assert found.frontier[1].in_float == ("small",) and found.frontier[2].in_float == ("small", "big")
    assert found.chosen.in_float == ("big",)
    assert world.measure(found.chosen.in_float).drift <= 0.005


def test_what_all_in_float_leaves_is_no_block_s_fault() -> None:
    """b has few MACs: were the floor not taken off, it would go first, and for nothing."""
    world = World({"a": 0.02, "b": 0.0})
    shifted = lambda in_float: dataclasses.replace(point := world.measure(in_float), drift=point.drift + 0.004)  # noqa: E731
    assert search({"a": 100, "b": 1}, shifted, within(0.005)).chosen.in_float == ("a",)
    assert len(search({"a": 100, "b": 1}, shifted, within(0.005)).frontier) == 2


def test_a_limit_below_everything_is_said_with_the_nearest() -> None:
    with pytest.raises(
        RdError, match=r"--max-drift 1e-09 cannot be met: the nearest is 1e-06, with all 2 blocks in float"
    ):
        search({"a": 1, "b": 2}, World({"a": 0.2, "b": 0.1}).measure, within(1e-9))


def test_the_bundle_s_own_recording_is_kept_too() -> None:
    """By drift alone everything could be in int8, and the bundle would be refused for b."""
    world = World({"a": 0.001, "b": 0.001}, own={"a": 0.004, "b": 0.02})
    found = search({"a": 1, "b": 1}, world.measure, within(0.005))
    assert found.chosen.in_float == ("b",) and found.chosen.own_drift == 0.004
    assert found.frontier[0].drift < 0.005, "else the limit on drift had a part in it"


def test_a_block_goes_not_back_that_the_own_recording_needs() -> None:
    """`small` need not be in float for the drift, once `big` is."""
    world = World({"small": 0.003, "big": 0.02}, own={"small": 0.02})
    found = search({"small": 1, "big": 100}, world.measure, within(0.005))
    assert found.chosen.in_float == ("small", "big")


def test_an_own_recording_that_cannot_be_kept_is_said_as_what_it_is() -> None:
    """Not as a limit on drift that cannot be met; nor is the one named that has too much drift."""
    points = {("a",): Point(("a",), 0.001, 0.02, 9), (): Point((), 0.3, 0.001, 9)}
    with pytest.raises(RdError) as error:
        search({"a": 1}, lambda in_float: points[tuple(in_float)], within(0.005))
    assert error.value.message == (
        "the bundle's own recording and its cut ends cannot keep its bound, a mean frame cosine of 0.99: the nearest "
        "is 0.9800, with all 1 blocks in float (--max-drift 0.005 is kept on the recordings that check)"
    )
    assert error.value.hint and "lower --min-cosine knowingly" in error.value.hint


def test_heads_have_to_agree_where_that_is_asked_for() -> None:
    """Features within the drift limit are not enough; a block that heads need stays in float, and only it."""
    world, flips = World({"a": 0.001, "b": 0.0005, "c": 0.0001}), {"a": 0.02, "b": 0.08, "c": 0.001}

    def measure(in_float: Sequence[str]) -> Point:
        wrong = sum(share for name, share in flips.items() if name not in in_float)
        return dataclasses.replace(world.measure(in_float), agreement=1 - wrong)

    macs_of = {"a": 1.0, "b": 2.0, "c": 1.0}
    assert search(macs_of, measure, within(0.01)).chosen.in_float == ()
    found = search(macs_of, measure, dataclasses.replace(within(0.01), agreement=0.97))
    assert found.chosen.in_float == ("b",) and found.chosen.agreement == pytest.approx(0.979)
    with pytest.raises(RdError, match=r"--min-agreement 1\.5 cannot be met: the nearest is 1\.0000"):
        search(macs_of, measure, dataclasses.replace(within(0.01), agreement=1.5))
    with pytest.raises(RdError, match="cannot be met"):  # measured without heads: never taken for kept
        search(macs_of, world.measure, dataclasses.replace(within(0.01), agreement=0.5))


def test_macs_of_blocks_are_those_of_the_whole(configs) -> None:
    """Against the project's own count: all but what stays in float anyway."""
    config = configs["shared"]
    found = block_macs(
        config.conv_layers,
        width=config.width,
        layer_weights=[(s.weights(*ATTENTION_PARTS), s.weights("fc1", "fc2")) for s in config.layer_shapes],
        head_weights=config.width * config.head_width,
        heads=config.layers,
    )
    whole = {part: count / 100 for part, count in macs(config, 5000).items()}
    channels, kernel, stride = config.conv_layers[0]
    front = sum(count for name, count in found.items() if name.startswith("front-end"))
    assert front == pytest.approx(whole["conv"] - 16_000 / stride * channels * kernel, rel=1e-3)
    layers = sum(count for name, count in found.items() if name.startswith("layer."))
    assert layers == pytest.approx(whole["projections"] + whole["ffn"])
    assert found["heads"] == pytest.approx(whole["heads"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int8", "--max-drift", "2"), "--max-drift 2 is outside 0..1"),
        (
            ("--precision", "int8", "--max-drift", "0.01", "--front-end", "float"),
            "--front-end and --max-drift both say",
        ),
        (("--precision", "fp16", "--max-drift", "0.01"), "--max-drift searches static int8 for onnx or ort"),
        (
            ("--precision", "int8", "--max-drift", "0.02"),
            "--max-drift 0.02 allows a mean frame cosine of 0.98, the bundle's bound is 0.99",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(words, message, workshop, run_export, tmp_path) -> None:
    run = run_export(
        workshop.checkpoint("shared"), *words, "--calibration", workshop.speech, "--output", tmp_path / "x"
    )
    assert (run.status, message in run.err) == (2, True), run.err
    assert not (tmp_path / "x").exists()
