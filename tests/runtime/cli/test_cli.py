"""rd-stream: rd-stream as a user meets it."""

import io
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.rd_stream import main


@pytest.fixture
def recording(tmp_path, toys):
    soundfile.write(tmp_path / "speech.flac", toys.speech(48_000), 16_000)
    return tmp_path / "speech.flac"


def samples(path):
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.parametrize("kind", ["streaming", "window"])
def test_a_file_to_npy(toys, recording, tmp_path, capsys, kind):
    bundle = getattr(toys, kind)
    assert main([str(recording), str(bundle), "--output", str(tmp_path / "out.npy")]) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), Encoder.load(bundle).extract(samples(recording)))
    assert capsys.readouterr() == ("", "")


def test_a_file_to_jsonl_on_stdout(toys, recording, capsysbinary):
    assert main([str(recording), str(toys.streaming)]) == 0
    out, err = capsysbinary.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    wanted = Encoder.load(toys.streaming).extract(samples(recording))
    assert err == b""
    assert [line["index"] for line in lines] == list(range(149))
    assert lines[100]["start_s"] == 2.0
    assert np.array_equal(np.float32([line["features"] for line in lines]), wanted.transpose(1, 0, 2))


def test_npy_on_stdout(toys, recording, capsysbinary):
    assert main([str(recording), str(toys.streaming), "--output", "npy"]) == 0
    found = np.load(io.BytesIO(capsysbinary.readouterr().out))
    assert np.array_equal(found, Encoder.load(toys.streaming).extract(samples(recording)))


def test_the_window_can_be_chosen(toys, recording, tmp_path):
    options = ["--chunk", "5", "--left", "10", "--right", "7", "--output", str(tmp_path / "out.npy")]
    assert main([str(recording), str(toys.offline), *options]) == 0
    encoder = Encoder.load(toys.offline)
    stream = encoder.stream(chunk_frames=5, left_frames=10, right_frames=7)
    wanted = encoder.join([*stream.push(samples(recording)), *stream.finish()])
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted)


@pytest.mark.parametrize(("kind", "more"), [("streaming", ()), ("offline", ("--whole",))])
def test_what_a_recording_cannot_give_is_said(toys, tmp_path, capsys, kind, more):
    """Too short for a frame or too narrow for speech: a result all the same, and one warning."""
    soundfile.write(tmp_path / "short.wav", toys.speech(304), 16_000)
    soundfile.write(tmp_path / "narrow.wav", toys.speech(4_000), 4_000)
    options = [str(getattr(toys, kind)), *more, "--output", str(tmp_path / "out.npy")]
    for name, message, frames in (
        ("short", "19 ms, shorter than a frame of 25 ms: it has no features", 0),
        ("narrow", "recorded at 4000 Hz, so nothing above 2000 Hz is in it", 49),
    ):
        assert main([str(tmp_path / f"{name}.wav"), *options]) == 0
        err = capsys.readouterr().err
        assert err.startswith(f"warning: {tmp_path / name}.wav: {message}") and err.count("\n") == 1
        assert np.load(tmp_path / "out.npy").shape[1] == frames


def test_stats_are_on_stderr(toys, recording, tmp_path, capsys):
    assert main([str(recording), str(toys.streaming), "--output", str(tmp_path / "out.npy"), "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "3.00 s of audio, 149 frames" in err
    assert "RTF 0." in err
    assert "38 steps: p50 " in err
    assert "provider cpu; latency before compute: worst 125 ms, mean 95 ms, first frame 85 ms\n" in err
    assert "features: streamed exactly; the fp32 model is within max_abs 2e-05 of its source\n" in err
    assert main([str(recording), str(toys.offline), "--output", str(tmp_path / "out.npy"), "--stats"]) == 0
    assert "features: approximate, a window of 150 | 16 | 64 frames at a time; --whole " in capsys.readouterr().err


@pytest.fixture
def talks(tmp_path, toys):
    """A folder of recordings, one of them below it."""
    folder = tmp_path / "talks"
    (folder / "more").mkdir(parents=True)
    for name, at in (("a.flac", 0), ("more/b.wav", 8_000)):
        soundfile.write(folder / name, toys.speech(40_000)[at:], 16_000)
    return folder


def test_several_files_and_folders_to_a_folder(toys, recording, talks, tmp_path, capsys):
    assert main([str(talks), str(recording), str(toys.streaming), "--output", f"{tmp_path}/out/"]) == 0
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.npy"))
    assert written == ["a.npy", "more/b.npy", "speech.npy"]
    encoder = Encoder.load(toys.streaming)
    for name, source in (("a", talks / "a.flac"), ("more/b", talks / "more/b.wav"), ("speech", recording)):
        assert np.array_equal(np.load(tmp_path / "out" / f"{name}.npy"), encoder.extract(samples(source)))
    assert capsys.readouterr() == ("", "")


def test_several_files_as_lines_name_their_file(toys, talks, capsysbinary):
    assert main([str(talks), "--bundle", str(toys.streaming)]) == 0
    lines = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == ["a.flac"] * 124 + ["more/b.wav"] * 99
    assert [line["index"] for line in lines] == [*range(124), *range(99)]


def test_one_bad_file_of_several_does_not_stop_the_others(toys, talks, tmp_path, capsys):
    (talks / "a.flac").write_bytes(b"no audio")
    assert main([str(talks), str(toys.streaming), "--output", f"{tmp_path}/out/"]) == 2
    err = capsys.readouterr().err
    assert "error: " in err and "a.flac" in err
    assert err.endswith("1 of 2 recordings could not be read\n")
    assert [p.name for p in (tmp_path / "out").rglob("*.npy")] == ["b.npy"]


def test_the_whole_utterance_of_an_offline_bundle(toys, recording, tmp_path, capsys):
    out = tmp_path / "out.npy"
    assert main([str(recording), str(toys.offline), "--whole", "--output", str(out), "--stats"]) == 0
    assert np.array_equal(np.load(out), Encoder.load(toys.offline).extract(samples(recording)))
    assert "features: of the whole utterance" in capsys.readouterr().err


def piped(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.mark.parametrize(("name", "dtype", "scale"), [("s16le", "<i2", 32768), ("f32le", "<f4", 1)])
@pytest.mark.parametrize("channels", [1, 2])
def test_raw_pcm_on_standard_input(toys, tmp_path, monkeypatch, name, dtype, scale, channels):
    pcm = (toys.speech(96_000).reshape(-1, channels) * (scale - 1)).astype(dtype)
    piped(monkeypatch, pcm.tobytes())
    options = ["--rate", "48000", "--format", name, "--channels", str(channels), "--output", str(tmp_path / "out.npy")]
    assert main(["-", str(toys.streaming), *options]) == 0
    wanted = Encoder.load(toys.streaming).extract(pcm.astype(np.float64) / scale, 48_000)
    assert np.allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-6)


def test_pcm_that_ends_within_a_sample(toys, tmp_path, monkeypatch, capsys):
    piped(monkeypatch, bytes(40_001))
    assert main(["-", str(toys.streaming), "--output", str(tmp_path / "out.npy")]) == 2
    assert "error: standard input ends with 1 of the 2 bytes of sample 20000\n\nhint: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


ERRORS = {
    "no bundle": (["{audio}", "{tmp}/none"], "not a bundle, there is no manifest.json"),
    "no file": (["{tmp}/none.wav", "{bundle}"], "none.wav: no such file"),
    "bundle and file exchanged": (["{bundle}", "{audio}"], "is a bundle: it comes last, after the inputs"),
    "no path": ([], "no input: an audio file, a folder of audio, or - for standard input"),
    "a bundle among the inputs": (["{audio}", "{bundle}", "x"], "is a bundle: it comes last, after the inputs"),
    "a bundle alone": (["{bundle}"], "is a bundle, and no audio was named"),
    "rate of a file": (["{audio}", "{bundle}", "--rate", "8000"], "--rate and --format are for raw PCM"),
    "no rate": (["-", "{bundle}", "--rate", "0"], "sample rate 0 is not a positive"),
    "no format": (["-", "{bundle}", "--format", "mp3"], "raw PCM format 'mp3'"),
    "output": (["{audio}", "{bundle}", "--output", "out.txt"], "--output out.txt: the format is not clear"),
    "chunk": (["{audio}", "{bundle}", "--chunk", "3"], "chunk_frames=3: this streaming bundle was exported with 4"),
    "provider": (["{audio}", "{bundle}", "--provider", "gpu"], "provider 'gpu' is not known"),
    "threads": (["{audio}", "{bundle}", "--threads", "0"], "threads=0"),
    "certify what": (["--certify", "{bundle}", "{bundle}"], "2 paths given, one BUNDLE at most is needed"),
    "standard input and files": (["-", "{audio}", "{bundle}"], "- (standard input) together with files"),
    "whole of standard input": (["-", "{bundle}", "--whole"], "--whole is for files"),
    "whole window": (["{audio}", "{bundle}", "--whole", "--left", "3"], "--chunk, --left and --right set a window"),
    "several into one array": (["{audio}", "{audio}", "{bundle}"], "would have the same result"),
    "rate of a damaged header": (["-", "{bundle}", "--rate", "2147483647"], "is outside 1000 to 768000 Hz"),
    "rate in kHz": (["-", "{bundle}", "--rate", "16"], "sample rate 16 Hz is outside"),
}


@pytest.mark.parametrize(("arguments", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_are_told_without_a_traceback(toys, recording, tmp_path, capsys, monkeypatch, arguments, text):
    piped(monkeypatch, b"")
    names = {"audio": recording, "bundle": toys.streaming, "tmp": tmp_path}
    assert main([a.format(**names) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert text in err


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_a_broken_file_leaves_no_output(toys, recording, tmp_path, capsys, name):
    data = bytearray(recording.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    (tmp_path / "bad.flac").write_bytes(data)
    (tmp_path / "out").mkdir()
    assert main([str(tmp_path / "bad.flac"), str(toys.streaming), "--output", str(tmp_path / "out" / name)]) == 2
    assert "damaged after sample" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_cancelling_channels_are_warned_of_once(toys, tmp_path, capsys):
    wave = toys.speech(90_000)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], 1), 16_000)
    assert main([str(tmp_path / "a.wav"), str(toys.streaming), "--output", str(tmp_path / "out.npy")]) == 0
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'a.wav'}: the channels cancel each other: their mean is silence; "
        "give one channel, or invert one\n"
    )


@pytest.mark.parametrize("count", [0, 1, 399])
def test_less_than_a_frame_is_an_empty_result(toys, tmp_path, count):
    soundfile.write(tmp_path / "a.wav", np.zeros(count), 16_000)
    assert main([str(tmp_path / "a.wav"), str(toys.streaming), "--output", str(tmp_path / "out.npy")]) == 0
    assert np.load(tmp_path / "out.npy").shape == (2, 0, 6)


def test_certify(toys, capsys):
    bundle = toys.build("streaming")
    assert main(["--certify", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert out.count(" pass\n") == 9
    assert "\nstreaming error none (largest difference to one push of everything; limit 1e-06)\n" in out
    assert re.search(r"\nerror of fp32 \d\.\d\de-\d\d \(largest difference to its source; limit max_abs 2e-05\)\n", out)
    assert "\ncertified on cpu, 1 thread(s)\nwritten to " in out
    assert json.loads((bundle / "certificate.json").read_text())["passed"] is True


def test_a_certificate_of_the_shipped_bundle_is_written_only_where_asked(toys, tmp_path, capsys, monkeypatch):
    """The program's own files stay as they are: a checkout, or site-packages."""
    bundle = toys.build("streaming")
    monkeypatch.setattr("reuse_distill.runtime.cli.stream_command.SHIPPED", bundle)
    for words in (["--certify"], ["--certify", str(bundle)]):
        assert main(words) == 0
        assert "not written: the bundle is part of this program; --output FILE keeps" in capsys.readouterr().out
    assert not (bundle / "certificate.json").exists()
    assert main(["--certify", "--output", str(tmp_path / "c.json")]) == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["passed"] is True
    assert found["streaming_error"] == 0
    assert 0 < found["source_error"] < 2e-5
    assert not (bundle / "certificate.json").exists()


def test_certify_fails_with_status_1(toys, capsys, monkeypatch):
    monkeypatch.setattr("reuse_distill.runtime.streaming.state_pool.write_ring", lambda slots, news, cursor: None)
    bundle = toys.build("streaming")
    assert main(["--certify", str(bundle)]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "\nNOT certified" in out
    assert json.loads((bundle / "certificate.json").read_text())["passed"] is False


def test_certify_of_another_kind_runs_its_selftest(toys, capsys):
    assert main(["--certify", str(toys.offline)]) == 0
    assert "the gate is for streaming bundles; selftest of this offline bundle passed" in capsys.readouterr().out
    assert not (toys.offline / "certificate.json").exists()


def test_the_microphone(toys, tmp_path, capsys, monkeypatch):
    pcm = (toys.speech(48_000) * 32767).astype(np.int16)

    class Microphone:
        rate_hz, overflows, behind_s = 48_000, 2, 0.0

        def __init__(self, **settings):
            self.settings = settings

        def blocks(self):
            assert self.settings == {"device": 1, "wanted_rate_hz": 48_000, "seconds": 1.0}
            return (pcm[at : at + 960] for at in range(0, len(pcm), 960))

    monkeypatch.setattr("reuse_distill.runtime.cli.stream_command.Microphone", Microphone)
    options = ["--mic", "--device", "1", "--rate", "48000", "--seconds", "1", "--output", str(tmp_path / "out.npy")]
    assert main([*options, str(toys.streaming)]) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), Encoder.load(toys.streaming).extract(pcm, 48_000))
    err = capsys.readouterr().err
    assert " dBFS " in err
    assert "RTF" in err
    assert "samples were lost 2 times" in err


@pytest.mark.parametrize("words", [["{audio}"], ["-"], ["--mic"]])
def test_without_a_bundle_the_shipped_one_is_used_and_said(toys, recording, tmp_path, capsys, monkeypatch, words):
    monkeypatch.setattr("reuse_distill.runtime.cli.stream_command.SHIPPED", toys.streaming)
    pcm = (toys.speech(48_000) * 32767).astype("<i2")
    microphone = types.SimpleNamespace(rate_hz=16_000, overflows=0, behind_s=0.0, blocks=lambda: iter([pcm]))
    monkeypatch.setattr("reuse_distill.runtime.cli.stream_command.Microphone", lambda **_: microphone)
    piped(monkeypatch, pcm.tobytes())
    words = [word.format(audio=recording) for word in words]
    assert main([*words, "--output", str(tmp_path / "out.npy")]) == 0
    assert np.load(tmp_path / "out.npy").shape[1] == 149
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"bundle: {toys.streaming.name}, shipped with this program; name a BUNDLE for another"


def test_the_program_itself(toys, recording, tmp_path):
    """As a process: a reader that stops early is no error, and Ctrl-C gives no traceback."""
    command = f"{sys.executable} -c 'from reuse_distill.runtime.rd_stream import main; raise SystemExit(main())'"
    line = f"{command} {recording} {toys.streaming} | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True)
    assert json.loads(done.stdout)["index"] == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    shown = subprocess.run(["bash", "-c", f"{command} --help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "rd-stream --certify bundle/" in shown.stdout
