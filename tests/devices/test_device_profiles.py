from __future__ import annotations

import pytest
from reuse_distill.devices.device_profiles import (
    Fact,
    find_profile,
    in_full,
    known_profiles,
    list_devices,
    read_profile,
    value_of,
)
from reuse_distill.runtime.errors import RdError

FAMILIES = {"jetson", "apple", "android", "raspberry-pi", "x86", "host"}
MINIMAL = """
title = "t"
family = "x86"
transport = "ssh"
targets = ["onnx"]
precisions = []
systems = []
power_modes = []
[cpu]
model = "m"
cores = "unmeasured"
clock = { value = "2 GHz", source = "s" }
[memory]
size = "unmeasured"
bandwidth = "unmeasured"
[sources]
s = "a source"
"""


def test_all_shipped_profiles_read_and_every_number_has_a_source():
    profiles = known_profiles()
    assert {profile.family for profile in profiles.values()} == FAMILIES
    named = {"jetson-xavier-nx", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-agx-thor"}
    assert named | {"raspberry-pi-4", "raspberry-pi-5", "host"} <= set(profiles)
    facts = [n for p in profiles.values() for _, _, n in p.numbers() if isinstance(n, Fact)]
    assert len(facts) > 60
    for profile in profiles.values():
        used = {n.source for _, _, n in profile.numbers() if isinstance(n, Fact)}
        assert used == set(profile.sources), f"{profile.name}: a source that no number uses, or the other way round"


def test_numbers_come_in_base_units():
    nano = find_profile("jetson-orin-nano")
    assert value_of(nano.cpu.clock, "frequency") == 1.5e9
    assert value_of(nano.memory.bandwidth, "rate") == 68e9
    assert value_of(find_profile("host").memory.bandwidth, "rate") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('model = "m"', 'model = "m"\ncolour = "red"', "unknown key 'colour'"),
        ('family = "x86"', 'famly = "x86"', "unknown key 'famly'"),
        ('source = "s"', 'source = "t"', "source 't' is not listed"),
        ('value = "2 GHz"', 'value = "2"', "has no unit"),
        ('cores = "unmeasured"', 'cores = "4"', "has no source"),
        ('transport = "ssh"', 'transport = "pigeon"', "pigeon"),
    ],
)
def test_bad_profiles_are_refused(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    assert read_profile(path).name == "mine"
    path.write_text(MINIMAL.replace(old, new))
    with pytest.raises(RdError, match=message):
        read_profile(path)


def test_an_unknown_device_gets_the_nearest_name():
    with pytest.raises(RdError) as caught:
        find_profile("jetson-orin-nanno")
    assert "did you mean 'jetson-orin-nano'" in (caught.value.hint or "")


def test_the_list_names_all_and_one_in_full_names_its_sources(capsys):
    assert list_devices(None, as_json=False) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in known_profiles())
    text = in_full(find_profile("raspberry-pi-5"))
    assert "memory.bandwidth: 17 GB/s  [processors]" in text and "[processors] Raspberry Pi documentation" in text
