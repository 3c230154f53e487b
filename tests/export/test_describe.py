"""What the manifest says about source and tools, and the maps that the report draws."""

from __future__ import annotations

import numpy as np
from reuse_distill.export.checkpoint_source import attention_maps, describe_source, read_source, tool_versions
from reuse_distill.runtime.bundle_format.bundle import file_sha256


def test_source(workshop) -> None:
    folder = workshop.checkpoint("shared")
    found = describe_source(read_source(folder, None))
    assert (found["name"], found["sha256"]) == ("shared", file_sha256(folder / "model.safetensors"))
    assert found["parameters"] == sum(p.numel() for p in workshop.student("shared").parameters())
    assert found["student"]["reuse_mode"] == "shared"
    assert found["macs_per_second"] > 0


def test_versions_say_what_is_missing() -> None:
    found = tool_versions(("torch", "no-such-package"))
    assert found["no-such-package"] == "not installed"
    assert found["torch"].startswith("2.")


def test_maps_are_the_ones_that_each_layer_takes(workshop, spec_of, noise) -> None:
    source = read_source(workshop.checkpoint("stream"), None)
    maps = attention_maps(source, spec_of("streaming"), noise(60_000))
    assert sorted(maps) == [1, 2, 3, 4]
    assert maps[1].shape == (149, 149)
    np.testing.assert_array_equal(maps[1], maps[2])
    assert np.abs(maps[1] - maps[3]).max() > 0.01
    for number in (1, 3):
        np.testing.assert_allclose(maps[number].sum(-1), 1, atol=1e-5)
    assert maps[1][100, 0] == 0, "beyond the left context of a stream"
