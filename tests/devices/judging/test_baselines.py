from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reuse_distill.devices.judging import baselines as store
from reuse_distill.devices.judging.series_stability import Stability
from reuse_distill.runtime.errors import RdError

STEADY = Stability("steady")


def with_latency(measurement, factor, **changes):
    stream = measurement.samples[0]
    slower = replace(stream, latency_ms=tuple(np.asarray(stream.latency_ms) * factor))
    return replace(measurement, samples=(slower,), **changes)


def test_a_baseline_reads_back_and_keeps_the_newest_runs(tmp_path, measurement):
    kept = store.Baselines()
    for i in range(14):
        kept = store.added(
            kept, with_latency(measurement, 1 + i / 100, taken_at=f"run {i}"), device="shelf-1", stability=STEADY
        )
    store.write_baselines(tmp_path / "base.json", kept)
    found = store.read_baselines(tmp_path / "base.json")
    assert found == kept
    entry = store.baseline_for(found, store.key_of(measurement, device="shelf-1"), path=tmp_path)
    assert [run.taken_at for run in entry.runs] == [f"run {i}" for i in range(2, 14)]


def test_another_device_is_refused(tmp_path, measurement):
    kept = store.added(store.Baselines(), measurement, device="shelf-1", stability=STEADY)
    with pytest.raises(RdError, match=r"a baseline of shelf-1, this run is on shelf-2"):
        store.check_owner(kept, ["shelf-2"], path=tmp_path)
    store.check_owner(kept, ["shelf-2", "shelf-1"], path=tmp_path)


def test_another_machine_under_the_same_name_is_refused(tmp_path, measurement):
    kept = store.added(store.Baselines(), measurement, device="shelf-1", stability=STEADY)
    other = replace(measurement, context=replace(measurement.context, machine="Other Board"))
    with pytest.raises(RdError, match="taken on another machine"):
        store.baseline_for(kept, store.key_of(other, device="shelf-1"), path=tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: replace(m, context=replace(m.context, packages={"onnxruntime": "1.32.0"})), "software"),
        (lambda m: replace(m, bundle=replace(m.bundle, precision="int8")), "bundle"),
        (lambda m: replace(m, request=replace(m.request, streams=8)), "workload"),
    ],
)
def test_another_version_bundle_or_workload_has_no_baseline_and_says_which(tmp_path, measurement, change, reason):
    kept = store.added(store.Baselines(), measurement, device="shelf-1", stability=STEADY)
    key = store.key_of(change(measurement), device="shelf-1")
    assert store.baseline_for(kept, key, path=tmp_path) is None
    assert f"no baseline for this {reason}" in store.why_none(kept, key)


def test_versions_that_the_bundle_does_not_use_start_no_new_baseline(measurement):
    more = {**measurement.context.packages, "reuse-distill": "9", "coremltools": "9.0"}
    newer = replace(measurement, context=replace(measurement.context, packages=more))
    assert store.key_of(newer, device="x") == store.key_of(measurement, device="x")


def test_a_throttled_run_is_not_kept(measurement):
    with pytest.raises(RdError, match="not kept as a baseline, the run is throttled"):
        store.added(store.Baselines(), measurement, device="x", stability=Stability("throttled", "hot"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"entries": 3}',
        '{"entries": [], "schema": 99}',
        '{"entries": [], "colour": 1}',
        "\ud800",
    ],
)
def test_damaged_files_are_refused(tmp_path, text):
    path = tmp_path / "base.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RdError, match=r"base\.json"):
        store.read_baselines(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, measurement, monkeypatch):
    path = tmp_path / "base.json"
    store.write_baselines(path, store.Baselines())
    old = path.read_text()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RdError, match="No space left"):
        store.write_baselines(path, store.added(store.Baselines(), measurement, device="x", stability=STEADY))
    assert path.read_text() == old and json.loads(old)["entries"] == []
    assert [p.name for p in tmp_path.iterdir()] == ["base.json"]


def test_streams_are_merged_in_the_order_in_which_chunks_were_done(measurement):
    a = replace(measurement.samples[0], at_s=(1.0, 3.0), latency_ms=(10.0, 30.0), service_ms=(1.0, 1.0))
    b = replace(a, at_s=(2.0, 4.0), latency_ms=(20.0, 40.0))
    assert store.series_of(replace(measurement, samples=(a, b))).tolist() == [10, 20, 30, 40]
