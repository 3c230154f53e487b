"""A rehearsal from end to end on a toy bundle, in this process and for real in environments with planted faults."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from reuse_distill.devices.measuring.measurement import Measurement, Request
from reuse_distill.devices.measuring.measurement_run import measure
from reuse_distill.devices.rd_latency import main
from reuse_distill.devices.rehearsal import sides
from reuse_distill.devices.rehearsal.rehearsal_page import rehearsal_json, rehearsal_page, rehearsal_text
from reuse_distill.devices.rehearsal.rehearse_command import rehearse
from reuse_distill.devices.transports.fleet import Access
from reuse_distill.devices.transports.local import Environment
from reuse_distill.devices.transports.transport import NotMeasured
from reuse_distill.runtime.errors import RdError

from benchmarks.planted_upgrade import plant

REQUEST = Request(mode="back-to-back", seconds=4.0, warmup_chunks=2)


@dataclass
class InProcess:
    """A transport without a process; ``instead`` is measured in place of the bundle that was given. Only the first run
    is measured, the others are its copies."""

    instead: Path | None = None
    error: str = ""
    address: str = ""
    first: Measurement | None = None

    def measure(self, bundle, request, **_):
        if self.error:
            raise NotMeasured(self.error)
        if self.first is None:
            self.first = measure(self.instead or bundle, request, progress=lambda line: None)
        return self.first


def rehearsed(bundle, one, other):
    return rehearse(
        bundle,
        sides.Side("before <1>", "environment", one),
        sides.Side("after <2>", "environment", other),
        REQUEST,
        pairs=3,
        detect=1.0,
        tolerance=0.01,
        report=lambda side, line: None,
    )


@pytest.fixture(scope="module")
def changed(make_bundle):
    """From a bundle to one that computes something else and passes its own self-test."""
    bundle = make_bundle(work=2, name="old")
    return rehearsed(bundle, InProcess(), InProcess(make_bundle(work=3, name="new")))


def test_other_features_are_different_though_the_self_test_passes(changed):
    assert changed.verdict == "different"
    by_name = {one.name: one for one in changed.aspects}
    assert by_name["self-test"].verdict == "safe" and by_name["features"].verdict == "different"
    assert by_name["precision used"].verdict == "different"  # one product more
    assert {one.recording for one in changed.outputs} >= {"self-test recording", "self-test recording, 20 dB quieter"}
    assert changed.kernels.precision_from == {"float32": 3} and changed.kernels.precision_to == {"float32": 4}
    assert len(changed.before) == len(changed.after) == 3


def test_the_page_shows_everything_and_escapes_names(changed):
    page = rehearsal_page(changed)
    assert "before &lt;1&gt;" in page and "<1>" not in page
    for part in ("What was compared", "Features", "Time", "Kernels", "Software and machine", "20 dB quieter", "MatMul"):
        assert part in page
    assert "different: toy" not in page and rehearsal_text(changed).startswith("different: ")


def test_the_json_has_every_figure_and_no_sampled_array(changed):
    data = json.loads(rehearsal_json(changed))
    assert data["verdict"] == "different" and data["latency"]["ratio"] > 0
    assert data["before"][0]["details"]["probe"]["results"] == [] and data["before"][0]["details"]["probe"]["nodes"]


def test_a_file_that_is_refused_after_the_upgrade_is_broken_and_before_it_unmeasured(streaming_bundle):
    refused = InProcess(error="opset 99 is not supported")
    after = rehearsed(streaming_bundle, InProcess(), refused)
    assert after.verdict == "broken" and "opset 99" in after.reasons[0]
    assert "opset 99" in rehearsal_page(after)
    before = rehearsed(streaming_bundle, refused, InProcess())
    assert before.verdict == "unmeasured" and "not before the upgrade either" in before.reasons[0]


def test_an_answer_without_a_usable_probe_is_unmeasured(streaming_bundle):
    honest, damaged = InProcess(), InProcess()
    honest.first = measure(streaming_bundle, replace(REQUEST, probe=True), progress=lambda line: None)
    details = dict(honest.first.details)
    outputs = [{**details["probe"]["results"][0]["outputs"][0], "data": ("!",)}]
    details["probe"] = {**details["probe"], "results": [{**details["probe"]["results"][0], "outputs": outputs}]}
    damaged.first = replace(honest.first, details=details)
    result = rehearsed(streaming_bundle, honest, damaged)
    assert result.verdict == "unmeasured" and "not base64" in result.reasons[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "here"], "--to"),
        (["--from", "here", "--to", "no/such/folder"], "there is no Python"),
        (["--from", "here", "--to", "jetson-orin-nanno"], "there is no device"),
        (["--from", "here", "--to", "here", "--runs", "2"], "expected 3 to 50 pairs"),
        (["--from", "here", "--to", "here", "--detect", "0"], "expected up to 100%"),
    ],
)
def test_bad_calls_are_2(streaming_bundle, capsys, words, message):
    try:
        status = main(["rehearse", str(streaming_bundle), *words])
    except SystemExit as error:  # argparse
        status = error.code
    assert status == 2 and message in capsys.readouterr().err


def opened(text, tmp_path):
    return sides.open_side(text, fleet={}, access=Access(), environments=tmp_path, progress=lambda line: None)


def test_a_side_is_an_environment_requirements_or_a_device(tmp_path, monkeypatch):
    assert opened("here", tmp_path).kind == "environment"
    assert opened(sys.prefix, tmp_path).transport == Environment(Path(sys.prefix, "bin", "python"))
    assert opened(sys.executable, tmp_path).transport.address == sys.executable
    assert opened("jetson-orin-nano=ci@10.0.0.1", tmp_path).transport.address == "ci@10.0.0.1"
    monkeypatch.setattr(sides, "made_environment", lambda words, parent, progress: Path(*words))
    made = opened("onnxruntime==1.23.2 numpy~=2.3", tmp_path)
    assert made.kind == "made environment" and made.transport.address == "onnxruntime==1.23.2/numpy~=2.3"
    with pytest.raises(RdError, match="without bin/python"):
        opened(str(tmp_path), tmp_path)


def wheel(folder, name, version):
    """The smallest wheel that pip installs."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_an_environment_is_made_once_and_a_failed_one_is_not_kept(tmp_path, monkeypatch):
    wheels, parent = tmp_path / "wheels", tmp_path / "environments"
    wheels.mkdir()
    for name in ("toyengine", *sides.BESIDES):
        wheel(wheels, name, "1.5")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    lines = []
    python = sides.made_environment(["toyengine==1.5"], parent, progress=lines.append)
    assert sides.made_environment(["toyengine==1.5"], parent, progress=lines.append) == python and len(lines) == 1
    assert list((python.parent.parent / "lib").rglob("toyengine.py")) and list(python.parent.parent.rglob("numpy.py"))
    with pytest.raises(RdError, match=r"pip: ERROR.*toyengine==9"):
        sides.made_environment(["toyengine==9"], parent, progress=lines.append)
    assert [folder.name for folder in parent.iterdir()] == [python.parent.parent.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "verdict", "reason"),
    [
        ("features", "different", "differ by up to"),
        ("wrong", "broken", "outside the bound"),
        ("refuse", "broken", "NOT_IMPLEMENTED"),
    ],
)
def test_a_planted_fault_is_found(make_bundle, tmp_path, fault, verdict, reason):
    bundle = make_bundle(name=fault, parity={"bound": {"mean_cosine": 0.9}})
    planted = Environment(sides.python_in(plant(Path(sys.prefix), fault, tmp_path / "planted")))
    result = rehearsed(bundle, Environment(Path(sys.prefix, "bin", "python")), planted)
    assert result.verdict == verdict and reason in " ".join(result.reasons)
