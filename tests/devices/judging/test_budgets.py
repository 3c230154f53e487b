from __future__ import annotations

from dataclasses import replace

import pytest
from reuse_distill.devices.judging.budgets import read_budget
from reuse_distill.runtime.errors import RdError


def write(tmp_path, text):
    path = tmp_path / "budget.toml"
    path.write_text(text)
    return path


FACTS = {"device": "host", "kind": "streaming", "precision": "int8", "mode": "paced", "streams": 1}


def test_closer_entries_win_limit_by_limit(tmp_path):
    budget = read_budget(
        write(
            tmp_path,
            'p99 = "40 ms"\nrtf = "0.5"\n'
            '[[budget]]\ndevice = "host"\nprecision = "int8"\np99 = "10 ms"\n'
            '[[budget]]\ndevice = "host"\np99 = "20 ms"\nmax = "1 s"\n'
            '[[budget]]\ndevice = "pixel-8"\np99 = "1 ms"\n',
        )
    )
    assert budget.limits(FACTS) == {"p99": 10.0, "rtf": 0.5, "max": 1000.0}
    assert budget.limits({**FACTS, "precision": "fp32"})["p99"] == 20.0
    assert budget.limits({**FACTS, "device": "jetson-orin-nx"})["p99"] == 40.0


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("p99 = 40\n", "p99: 40 has no unit", "40 ms"),
        ('p99 = "40"\n', "p99: 40 has no unit", "ms"),
        ('peak_memory = "150"\n', "no unit", "B"),
        ('p98 = "40 ms"\n', "unknown key 'p98'", "did you mean"),
        ('p99.9 = "40 ms"\n', "p99 is a table", "p999"),
        ('device = "host"\np99 = "1 ms"\n', "selects nothing here", "[[budget]]"),
        ('[budget]\np99 = "1 ms"\n', "two brackets", None),
        ("", "holds no limit", "p99"),
        ('[[budget]]\ndevice = "host"\n', "holds no limit", "p99"),
        ('[[budget]]\nstreams = "one"\np99 = "1 ms"\n', "streams 'one': expected int", None),
        ("p99 = \n", "not valid TOML", None),
    ],
)
def test_bad_budgets_are_refused(tmp_path, text, message, hint):
    with pytest.raises(RdError) as caught:
        read_budget(write(tmp_path, text))
    assert message in caught.value.message
    assert "budget.toml" in caught.value.message
    assert (hint is None) or hint in (caught.value.hint or "")


def test_a_missing_file_and_a_binary_one_are_named(tmp_path):
    with pytest.raises(RdError, match="no such budget"):
        read_budget(tmp_path / "none.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RdError, match="not a text file"):
        read_budget(tmp_path / "binary")


def test_checks_pass_fail_and_stay_unmeasured(tmp_path, measurement):
    budget = read_budget(write(tmp_path, 'p50 = "5 ms"\np99 = "5 ms"\nenergy_per_second = "1 J"\n'))
    made = replace(measurement, metrics={"p50": 5.0, "p99": 5.1, "energy_per_second": None})
    checks = {check.metric: check for check in budget.check(made, device="host")}
    assert {name: check.verdict for name, check in checks.items()} == {
        "p50": "pass", "p99": "over budget", "energy_per_second": "unmeasured",
    }  # fmt: skip
    assert str(checks["p99"]) == "latency p99 5.1 ms, limit 5 ms (+2.0 %)"


def test_an_energy_limit_on_a_device_without_a_meter_is_unmeasured_and_says_why(tmp_path, measurement):
    (tmp_path / "b.toml").write_text('energy_per_second = "1.2 J"\np50 = "1 us"\n')
    silent = replace(measurement, metrics={**measurement.metrics, "energy_per_second": None, "p50": 3.0})
    energy, p50 = read_budget(tmp_path / "b.toml").check(silent, device="host")
    assert energy.verdict == "unmeasured" and str(energy).endswith("tells no energy (docs/devices.md says which do)")
    assert p50.verdict == "over budget" and str(p50).endswith("(3,000 times)")
    metered = replace(measurement, metrics={**measurement.metrics, "energy_per_second": 1.3})
    (energy, _) = read_budget(tmp_path / "b.toml").check(metered, device="host")
    assert energy.verdict == "over budget" and "1.3 J, limit 1.2 J (+8.3 %)" in str(energy)
