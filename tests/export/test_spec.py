"""What to export, as data: every wrong value is refused with both values."""

from __future__ import annotations

import pytest
from reuse_distill.export.spec import WindowContext, check_features, feature_width, parse_layers
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import preset

CONFIG = preset("tiny")


@pytest.mark.parametrize(
    ("text", "layers"),
    [("last", (6,)), ("all", (1, 2, 3, 4, 5, 6)), ("3", (3,)), ("5,1,3", (5, 1, 3)), (" 2, 4", (2, 4))],
)
def test_layers_in_the_order_asked_for(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, CONFIG) == layers


@pytest.mark.parametrize("text", ["", "7", "0", "-1", "1,1", "1.5", "1-3", "LAST", "1,,2"])
def test_wrong_layers(text: str) -> None:
    with pytest.raises(RdError, match="--layers"):
        parse_layers(text, CONFIG)


def test_features() -> None:
    headless = preset("tiny", head_width=None)
    assert (check_features(None, CONFIG), check_features(None, headless)) == ("heads", "hidden")
    assert (feature_width("heads", CONFIG), feature_width("hidden", preset("tiny", head_width=48))) == (
        128,
        128,
    )
    assert feature_width("heads", preset("tiny", head_width=48)) == 48
    with pytest.raises(RdError, match=r"'head' is unknown\n\nhint: did you mean 'heads'\?"):
        check_features("head", CONFIG)
    with pytest.raises(RdError, match="no projection heads"):
        check_features("heads", headless)


def test_window_of_frames() -> None:
    assert WindowContext().frames == 230
    for values in ((0, 0, 0), (-1, 8, 0), (0, 8, -1)):
        with pytest.raises(RdError, match="frames is not possible"):
            WindowContext(*values)
