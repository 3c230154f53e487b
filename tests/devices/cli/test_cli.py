"""`rd-latency` as a user calls it, on this machine: exit statuses, reports, bad input, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from reuse_distill.devices.cli.device_runs import Standards
from reuse_distill.devices.cli.latency_options import parse
from reuse_distill.devices.cli.measure_command import _long_enough
from reuse_distill.devices.judging import baselines
from reuse_distill.devices.judging.budgets import Budget, BudgetEntry
from reuse_distill.devices.judging.series_stability import Stability
from reuse_distill.devices.measuring import host_context
from reuse_distill.devices.measuring.measurement import Request
from reuse_distill.devices.measuring.measurement_run import measure
from reuse_distill.devices.rd_latency import main

ROOT = Path(__file__).resolve().parents[3]
QUICK = ("--back-to-back", "--seconds", "5", "--warmup", "2")  # 125 chunks: p90 exists, p99 does not


@pytest.fixture
def budget(tmp_path):
    def write(text):
        path = tmp_path / "budget.toml"
        path.write_text(text)
        return str(path)

    return write


def run(*words):
    return main([str(word) for word in words])


def test_within_budget_is_0_and_writes_every_report(streaming_bundle, budget, tmp_path, capsys):
    reports = {name: tmp_path / "out" / f"r.{name}" for name in ("json", "junit", "markdown", "report")}
    words = [word for name, path in reports.items() for word in (f"--{name}", path)]
    limits = budget('[[budget]]\ndevice = "host"\nkind = "streaming"\np90 = "10 s"\nrtf = "50"\npeak_memory = "4 GB"\n')
    assert run(streaming_bundle, "--device", "host", "--budget", limits, *QUICK, *words) == 0
    data = json.loads(reports["json"].read_text())
    assert data["outcomes"][0]["verdict"] == "pass" and len(data["outcomes"][0]["checks"]) == 3
    assert len(data["outcomes"][0]["measurement"]["samples"][0]["latency_ms"]) == 125
    assert ET.fromstring(reports["junit"].read_text()).get("tests") == "3"
    assert "Latency: pass" in reports["markdown"].read_text()
    assert reports["report"].read_text().startswith("<!doctype html>")
    assert "host: pass" in capsys.readouterr().out


@pytest.mark.parametrize("words", [QUICK, ("--paced", "--seconds", "0.6", "--warmup", "1"), (*QUICK, "--streams", "8")])
def test_over_budget_is_1(streaming_bundle, budget, capsys, words):
    assert run(streaming_bundle, "--budget", budget('p50 = "0.1 us"\n'), *words) == 1
    assert "over budget: latency p50" in capsys.readouterr().out


def test_a_limit_on_what_was_not_measured_is_4(streaming_bundle, budget, capsys):
    limits = budget('p999 = "10 s"\np50 = "10 s"\n')  # 125 chunks carry no p99.9
    assert run(streaming_bundle, "--budget", limits, *QUICK) == 4
    out = capsys.readouterr().out
    assert "unmeasured: latency p99.9 unmeasured, limit 10 s; p99.9 is unmeasured: 125 samples, 6636 are needed" in out
    assert "266 s of audio (--seconds 266 or --until-enough p999)" in out


@pytest.mark.parametrize(
    ("words", "mode", "chunks"),
    [
        (["--scenario", "single-stream"], "back-to-back", 500),
        (["--scenario", "multi-stream"], "multi-stream", 662),
        (["--scenario", "paced", "--until-enough"], "paced", 662),
        (["--until-enough", "p90", "--seconds", "1"], "paced", 64),
        (["--scenario", "soak"], "paced", 1),
    ],
)
def test_scenarios_are_modes_with_mlperf_s_counts(streaming_bundle, words, mode, chunks):
    request = parse([str(streaming_bundle), *words]).request
    assert request.mode == mode and request.chunks(0.04) == chunks
    assert request.streams == (8 if mode == "multi-stream" else 1)
    assert request.soak_s == (600.0 if "soak" in words else 0.0)


def test_a_slower_bundle_is_a_regression_and_exits_1(make_bundle, tmp_path, capsys):
    request = Request(mode="back-to-back", seconds=320.0, warmup_chunks=2)
    fast = measure(make_bundle(work=2, name="fast"), request, progress=lambda _: None)
    kept = baselines.Baselines()
    for factor in (0.99, 1.0, 1.01):  # kept as steady whatever else this machine is doing
        stream = fast.samples[0]
        scaled = replace(stream, latency_ms=tuple(factor * value for value in stream.latency_ms))
        one = replace(fast, samples=(scaled,))
        steady = Stability("steady")
        kept = baselines.added(kept, one, device="host", stability=steady, accepted=("busy", "bimodal"))
    baselines.write_baselines(tmp_path / "base.json", kept)
    slow = make_bundle(work=300, name="slow")
    words = ("--accept", "busy", "--accept", "bimodal", "--back-to-back", "--seconds", 40, "--warmup", 2)
    status = run(slow, "--baseline", tmp_path / "base.json", *words)
    assert status == 1 and "regressed: " in capsys.readouterr().out


def test_one_earlier_run_is_no_baseline(streaming_bundle, tmp_path, capsys):
    path = tmp_path / "base.json"
    words = ("--accept", "busy", "--accept", "bimodal", *QUICK)
    fast = measure(streaming_bundle, Request(mode="back-to-back", seconds=5.0, warmup_chunks=2), progress=lambda _: 0)
    how = {"device": "host", "stability": Stability("steady"), "accepted": ("busy",)}
    baselines.write_baselines(path, baselines.added(baselines.Baselines(), fast, **how))
    assert run(streaming_bundle, "--baseline", path, *words) == 4
    assert "3 in separate processes are needed" in capsys.readouterr().out


def test_aa_runs_say_what_they_could_show(streaming_bundle, capsys):
    assert run(streaming_bundle, "--aa", "--runs", "3", *QUICK) == 0
    assert "A/A: 3 runs differ by" in capsys.readouterr().out


def test_no_baseline_for_this_workload_is_4(streaming_bundle, tmp_path, measurement):
    here = replace(measurement, context=host_context.collect())
    path = tmp_path / "base.json"
    how = {"device": "host", "stability": Stability("steady"), "accepted": ("busy",)}
    kept = baselines.added(baselines.Baselines(), here, **how)
    baselines.write_baselines(path, kept)
    assert run(streaming_bundle, "--baseline", path, "--json", tmp_path / "o.json", *QUICK) == 4
    assert "no baseline for this workload" in (tmp_path / "o.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "jetson-orin-nanno"], "did you mean 'jetson-orin-nano'"),
        (["--device", "jetson-orin-nano"], "no address"),
        (["--device", "host", "--device", "host"], "given twice"),
        (["--host", "a@b", "--host", "c@d"], "no device is left"),
        (["--host=-oProxyCommand=x"], "is not an address"),
        (["--streams", "0"], "expected 1 to 1024"),
        (["--soak", "600"], "no unit"),
        (["--scenario", "single-stream", "--streams", "2"], "single-stream is one stream"),
        (["--seconds", "nan"], "expected seconds"),
        (["--budget", "none.toml"], "no such budget"),
        (["--baseline", "none.json"], "no such baseline"),
        (["--fleet", "none.toml"], "no such fleet file"),
        (["--junit", "/"], "is a folder"),
    ],
)
def test_bad_calls_are_2_and_say_what_to_do(streaming_bundle, capsys, words, message):
    assert run(streaming_bundle, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err


def test_a_limit_on_p99_makes_the_run_long_enough():
    budget = Budget("b", (BudgetEntry({}, {"p99": 40.0}),))
    assert _long_enough(Request(), Standards(budget=budget)).enough == "p99"
    assert _long_enough(Request(seconds=5.0), Standards(budget=budget)).enough == ""
    assert _long_enough(Request(), Standards()).enough == ""


def test_a_budget_without_units_is_2(streaming_bundle, budget, capsys):
    assert run(streaming_bundle, "--budget", budget("p99 = 40\n")) == 2
    assert '40 has no unit\n\nhint: write "40 ms"' in capsys.readouterr().err


def test_a_budget_that_says_nothing_about_the_device_is_2(streaming_bundle, budget, capsys):
    assert run(streaming_bundle, "--budget", budget('[[budget]]\ndevice = "pixel-8"\np99 = "1 s"\n')) == 2
    assert "no limit applies to host, streaming, fp32, paced, 1 stream(s)" in capsys.readouterr().err


def test_a_bundle_for_another_target_is_2(make_bundle, capsys):
    assert run(make_bundle(target="coreml", name="apple")) == 2
    assert "built for target 'coreml', host runs onnx, ort" in capsys.readouterr().err
    assert run(make_bundle(status="deferred", name="later")) == 2
    assert "this bundle is deferred" in capsys.readouterr().err
    assert run(make_bundle(device={"profile": "jetson-orin-nano"}, name="bound")) == 2
    assert "built for jetson-orin-nano, not for host" in capsys.readouterr().err


def test_a_baseline_from_another_device_is_2(streaming_bundle, tmp_path, measurement, capsys):
    path = tmp_path / "base.json"
    kept = baselines.added(baselines.Baselines(), measurement, device="shelf-1", stability=Stability("steady"))
    baselines.write_baselines(path, kept)
    assert run(streaming_bundle, "--baseline", path) == 2
    assert "a baseline of shelf-1, this run is on host" in capsys.readouterr().err


def test_a_baseline_of_another_machine_under_this_name_is_refused(streaming_bundle, tmp_path, measurement, capsys):
    path = tmp_path / "base.json"
    kept = baselines.added(baselines.Baselines(), measurement, device="host", stability=Stability("steady"))
    baselines.write_baselines(path, kept)
    assert run(streaming_bundle, "--baseline", path, *QUICK) == 4
    assert "baseline refused" in capsys.readouterr().out


def test_what_is_no_bundle_is_2(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert "not a bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[device.a]\nprofile = "host"\ncolour = "red"\n', "unknown key 'colour'"),
        ('[device."a b"]\nprofile = "host"\n', "device name 'a b'"),
        ('[device.a]\nprofile = "hosst"\n', "did you mean 'host'"),
        ('[devices.a]\nprofile = "host"\n', "unknown key 'devices'"),
    ],
)
def test_bad_fleet_files_are_2(streaming_bundle, tmp_path, capsys, text, message):
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    assert run(streaming_bundle, "--fleet", path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_clean(streaming_bundle, tmp_path, signum):
    command = [
        sys.executable,
        "-m",
        "reuse_distill.devices.rd_latency",
        str(streaming_bundle),
        "--seconds",
        "60",
        "--json",
        str(tmp_path / "o"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in process.stderr:
        if "chunks" in line:
            break
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped" in err and "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == []
    time.sleep(0.2)
    assert not [p for p in Path("/proc").glob("[0-9]*") if str(streaming_bundle) in _command(p)]


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text() if int(process.name) != os.getpid() else ""
    except OSError:
        return ""


def test_estimate_prints_a_labelled_band_or_unmeasured(make_bundle, capsys):
    told = make_bundle(source={"macs_per_second": 1.92e9, "weight_bytes": 1.7e7}, name="told")
    assert run("estimate", told, "--device", "raspberry-pi-5") == 0
    text = capsys.readouterr().out
    assert text.startswith("ESTIMATE, nothing was run") and "error band" in text
    assert run("estimate", make_bundle(name="silent"), "--device", "raspberry-pi-5") == 4
    assert "macs_per_second is not in the manifest" in capsys.readouterr().out
    assert run("estimate", told, "--device", "pixel-8") == 4
    assert "the profile's rate is unmeasured" in capsys.readouterr().out


def test_devices_lists_profiles_and_refuses_unknown_ones(capsys):
    assert run("devices") == 0
    assert "jetson-agx-thor" in capsys.readouterr().out
    assert run("devices", "jetson-orin-nx") == 0
    assert "102.4 GB/s  [module]" in capsys.readouterr().out
    assert run("devices", "orin") == 2
