"""Measuring toy bundles of all kinds for real, in this process and in a worker's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from reuse_distill.devices.measuring.measurement import Request, duration_s
from reuse_distill.devices.measuring.measurement_run import measure
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.devices.transports.local import Local
from reuse_distill.devices.transports.transport import NotMeasured
from reuse_distill.devices.worker import ERROR_MARK
from reuse_distill.runtime.errors import RdError

ROOT = Path(__file__).resolve().parents[3]
CHUNKS = {"streaming": 2, "window": 2, "offline": 16}


@pytest.mark.parametrize("kind", CHUNKS)
def test_every_kind_of_bundle_is_measured_chunk_by_chunk(make_bundle, kind):
    result = measure(
        make_bundle(kind),
        Request(mode="back-to-back", seconds=38.4, warmup_chunks=3, sliding_window=True),
        progress=lambda _: None,
    )
    chunk = CHUNKS[kind]
    assert result.bundle.chunk_frames == chunk and result.bundle.kind == kind
    assert len(result.samples[0].latency_ms) == 38.4 / (0.02 * chunk)
    assert result.details["pushes_without_frames"] == 0
    counted = [result.metrics[name] for name in ("p50", "p90", "p99", "max")]
    assert counted[3] >= counted[1] >= counted[0] > 0
    assert (counted[2] is None) == (38.4 / (0.02 * chunk) < 662)
    assert result.metrics["rtf"] == pytest.approx(np.mean(result.samples[0].service_ms) / (20 * chunk), rel=1e-3)
    assert result.metrics["p999"] is None
    assert result.overhead.per_chunk_p50_ms > 0
    assert result.details["selftest"].startswith("passed")


def test_an_offline_bundle_is_measured_with_whole_utterances(make_bundle):
    request = Request(seconds=34.0)  # two rounds of 2, 5 and 10 s
    result = measure(make_bundle("offline"), request, progress=lambda _: None)
    assert result.request.mode == "utterances" and result.bundle.chunk_frames == 249
    times = result.details["utterances_ms"]
    assert {length: len(values) for length, values in times.items()} == {"2 s": 2, "5 s": 2, "10 s": 2}
    assert list(result.samples[0].latency_ms) == pytest.approx(times["5 s"])
    assert result.metrics["rtf_10s"] > 0 and result.metrics["first_frame"] is None and result.metrics["p90"] is None
    assert "p90 is unmeasured: 2 samples, 64 are needed, 1088 s of audio" in result.notes[0]
    assert result.metrics["cpu_rtf"] > 0 and result.details["selftest"].startswith("passed")


@pytest.mark.parametrize("kind", ["streaming", "window"])
def test_streams_are_stepped_as_one_batch(make_bundle, kind):
    request = Request(mode="multi-stream", streams=3, seconds=2.0, warmup_chunks=2)
    result = measure(make_bundle(kind), request, progress=lambda _: None)
    assert len(result.samples) == 1 and len(result.samples[0].latency_ms) == 50  # steps of 40 ms, of all three
    assert result.details["pushes_without_frames"] == 0 and result.metrics["p90"] is None
    assert result.request.label == "multi-stream, 3 streams, 1 thread, auto"


def test_paced_runs_in_real_time_and_counts_the_first_frame(streaming_bundle):
    result = measure(streaming_bundle, Request(seconds=0.8, warmup_chunks=2), progress=lambda _: None)
    at_s = result.samples[0].at_s
    assert at_s[-1] - at_s[0] >= 0.5  # 20 chunks of 40 ms; the first may be late
    assert result.metrics["first_frame"] >= 45.0  # two frames are 45 ms of audio
    assert result.metrics["p99"] is None and result.metrics["wakeup_p99"] is None


def test_streams_run_side_by_side_and_are_all_kept(streaming_bundle):
    result = measure(streaming_bundle, Request(streams=8, seconds=0.8, warmup_chunks=2), progress=lambda _: None)
    assert [len(one.latency_ms) for one in result.samples] == [20] * 8
    firsts = sorted(one.at_s[0] % 0.04 for one in result.samples)
    assert np.ptp(firsts) > 0.01  # not all at the same moment: microphones are not synchronised


def test_soak_goes_on_for_its_duration(streaming_bundle):
    result = measure(
        streaming_bundle, Request(mode="back-to-back", soak_s=1.5, warmup_chunks=1), progress=lambda _: None
    )
    at_s = result.samples[0].at_s
    assert at_s[-1] - at_s[0] > 1.2 and len(result.readings) >= 2


def test_the_worker_s_memory_is_its_own(streaming_bundle):
    """Peak memory must not be this process's: it holds a block larger than the whole worker needs."""
    block = np.ones(37_500_000)  # 300 MB, touched
    request = Request(mode="back-to-back", seconds=1.0, warmup_chunks=0)
    result = Local().measure(streaming_bundle, request, limit_s=60, progress=lambda _: None, cancel=Event())
    assert 20e6 < result.metrics["peak_memory"] < 250e6 < block.nbytes


def test_a_worker_that_cannot_measure_says_why(streaming_bundle):
    request = Request(provider="no-such-provider")
    with pytest.raises(NotMeasured, match="no-such-provider"):
        Local().measure(streaming_bundle, request, limit_s=60, progress=lambda _: None, cancel=Event())


def test_a_device_that_computes_other_features_is_not_measured(make_bundle):
    with pytest.raises(NotMeasured, match="gives other features than the bundle's source: FAILED"):
        request = Request(mode="back-to-back", seconds=1.0)
        Local().measure(make_bundle(wrong=0.01), request, limit_s=60, progress=lambda _: None, cancel=Event())


def test_a_bundle_without_a_bound_has_an_unmeasured_selftest(make_bundle):
    bundle = make_bundle(parity={}, name="unbound")
    result = measure(bundle, Request(mode="back-to-back", seconds=1.0), progress=lambda _: None)
    assert result.details["selftest"].startswith("unmeasured")


def test_a_damaged_bundle_is_not_measured(make_bundle):
    bundle = make_bundle("streaming", name="damaged")
    model = bundle / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(bytes(data))
    with pytest.raises(NotMeasured, match="sha256"):
        Local().measure(bundle, Request(), limit_s=60, progress=lambda _: None, cancel=Event())


def test_a_time_limit_ends_the_worker(streaming_bundle):
    with pytest.raises(NotMeasured, match="not done after"):
        Local().measure(streaming_bundle, Request(seconds=60), limit_s=2.0, progress=lambda _: None, cancel=Event())


def test_cancelling_ends_the_worker(streaming_bundle):
    cancel = Event()

    def soon(line):
        if "chunks" in line:
            cancel.set()

    with pytest.raises(KeyboardInterrupt):
        Local().measure(streaming_bundle, Request(seconds=60), limit_s=60, progress=soon, cancel=cancel)


def test_the_worker_refuses_a_request_it_does_not_know(streaming_bundle):
    command = [
        sys.executable,
        "-m",
        "reuse_distill.devices.worker",
        str(streaming_bundle),
        "--request",
        '{"streems": 2}',
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 4
    error = json.loads(done.stdout.removeprefix(ERROR_MARK))
    assert "streems" in error["message"] and "streams" in error["hint"]


def test_devices_and_runtime_need_no_torch(streaming_bundle):
    code = (
        "import sys\n"
        "from reuse_distill.devices import device_profiles, estimate, rd_latency, worker\n"
        "from reuse_distill.devices.cli import measure_command\n"
        "from reuse_distill.devices.measuring.measurement_run import measure\n"
        "from reuse_distill.devices.measuring.measurement import Request\n"
        "from pathlib import Path\n"
        "measure(Path(sys.argv[1]), Request(mode='back-to-back', seconds=1), progress=lambda _: None)\n"
        "rooms = [f'reuse_distill.{room}' for room in ('student', 'export', 'distill')]\n"
        "others = ('torch', 'onnx', 'scipy', 'matplotlib', *rooms)\n"
        "print([m for m in others if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(streaming_bundle)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "fields", [{"mode": "pased"}, {"streams": 0}, {"threads": 0}, {"warmup_chunks": -1}, {"soak_s": -1.0}]
)
def test_unusable_requests_are_refused(fields):
    with pytest.raises(RdError):
        Request(**fields)


def test_durations_need_a_unit():
    assert [duration_s(text, where="--soak") for text in ("10min", "90 s", "2h", "1.5 min")] == [
        600,
        90,
        7200,
        90,
    ]
    with pytest.raises(RdError, match="no unit"):
        duration_s("600", where="--soak")


def test_the_signal_is_speech_like_seeded_and_never_silent():
    signal = speech_like(160_000, seed=1)
    assert np.array_equal(signal, speech_like(160_000, seed=1)) and not np.array_equal(
        signal, speech_like(160_000, seed=2)
    )
    blocks = signal.reshape(-1, 320)
    level = np.sqrt((blocks**2).mean(axis=1))
    assert level.min() > 1e-3 and level.max() > 20 * level.min() and np.abs(signal).max() <= 1
