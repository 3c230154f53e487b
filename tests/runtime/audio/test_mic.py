"""runtime/audio/mic.py with a stand-in for sounddevice: blocks, levels, lost samples and errors."""

import io
import sys
import threading
import time
import types

import numpy as np
import pytest
from reuse_distill.runtime.audio.mic import LiveLine, Microphone, level_dbfs, list_devices
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.latency import RunStats


class PortAudioError(Exception):
    """What sounddevice raises."""


def fake_sounddevice(pcm, *, rate_hz=48_000, overflow_at=(), dies=False):
    """A module that plays ``pcm`` (int16) into the callback, one block after another, from a thread."""
    module = types.ModuleType("sounddevice")
    module.PortAudioError = PortAudioError
    devices = [
        {"name": "Speakers", "max_input_channels": 0, "default_samplerate": 44_100.0},
        {"name": "USB microphone", "max_input_channels": 2, "default_samplerate": float(rate_hz)},
    ]

    def query_devices(device=None, kind=None):
        if kind is None:
            return devices
        if device not in (None, 1, "USB microphone"):
            raise ValueError(f"No input device matching {device!r}")
        return devices[1]

    class InputStream:
        def __init__(self, *, samplerate, device, channels, dtype, blocksize, callback):
            if samplerate != rate_hz:
                raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")
            assert (channels, dtype) == (1, "int16")
            self.callback, self.blocksize, self.active, self.closed = callback, blocksize, True, False
            module.opened = self

        def __enter__(self):
            self.thread = threading.Thread(target=self.play)
            self.thread.start()
            return self

        def __exit__(self, *_):
            self.closed = True
            self.thread.join()

        def play(self):
            shared = np.zeros((self.blocksize, 1), np.int16)  # PortAudio reuses its buffer
            for n, at in enumerate(range(0, len(pcm), self.blocksize)):
                block = pcm[at : at + self.blocksize]
                shared[: len(block), 0] = block
                self.callback(
                    shared[: len(block)], len(block), None, types.SimpleNamespace(input_overflow=n in overflow_at)
                )
                shared[:] = -1
            self.active = not dies

    module.query_devices, module.InputStream = query_devices, InputStream
    return module


@pytest.fixture
def install(monkeypatch):
    """Put a stand-in in the place of sounddevice."""

    def put(*args, **kw):
        module = fake_sounddevice(*args, **kw)
        monkeypatch.setitem(sys.modules, "sounddevice", module)
        return module

    return put


def test_blocks_are_what_was_recorded(install):
    pcm = np.arange(48_000, dtype=np.int16)
    module = install(pcm, overflow_at=(3, 7))
    microphone = Microphone(seconds=0.9)
    blocks = list(microphone.blocks())
    assert microphone.rate_hz == 48_000
    assert {len(block) for block in blocks} == {960}
    assert np.array_equal(np.concatenate(blocks), pcm[:43_200])
    assert microphone.overflows >= 2
    assert module.opened.closed


def test_it_stops_when_told(install):
    install(np.zeros(480_000, np.int16))
    microphone, blocks = Microphone(), []
    for block in microphone.blocks():
        blocks.append(block)
        if len(blocks) == 5:
            microphone.stop()
    assert len(blocks) == 5


def test_a_device_that_goes_away_is_an_error(install):
    install(np.zeros(9600, np.int16), dies=True)
    with pytest.raises(RdError, match=r"stopped recording\n\nhint: was it unplugged"):
        list(Microphone().blocks())


def test_devices_and_rates_that_are_not_there(install):
    install(np.zeros(10, np.int16))
    with pytest.raises(RdError, match=r"no such input device: .*'Headset'.*\n\nhint: rd-stream --list-devices"):
        Microphone(device="Headset")
    with pytest.raises(RdError, match=r"cannot record at 16000 Hz: Invalid sample rate"):
        list(Microphone(wanted_rate_hz=16_000).blocks())


def test_the_list_shows_inputs_only(install):
    install(np.zeros(0, np.int16))
    assert list_devices() == "  1  USB microphone  (2 in, 48000 Hz)"


def test_without_sounddevice_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(RdError, match=r"needs sounddevice and PortAudio.*\n\nhint: pip install \"\.\[mic\]\" in"):
        Microphone()


@pytest.mark.parametrize(("value", "level"), [(32767, 0.0), (16384, -6.02), (0, -120.0), (1, -90.31)])
def test_levels(value, level):
    assert level_dbfs(np.full(100, value, np.int16)) == pytest.approx(level, abs=0.01)
    assert level_dbfs(np.zeros(0, np.int16)) == -120.0


def test_the_live_line_is_rewritten_at_most_five_times_a_second():
    out, stats = io.StringIO(), RunStats()
    line = LiveLine(out)
    for n in range(100):
        stats.audio_s = 0.02 * (n + 1)
        line.show(np.full(960, 16384, np.int16), stats)
    line.end()
    shown = out.getvalue().split("\r")[1:]
    assert 8 <= len(shown) <= 11
    assert "-6.0 dBFS" in shown[-1]
    assert "[##################  ]" in shown[-1]
    assert "RTF 0.000" in shown[-1]
    assert "behind" not in out.getvalue()
    assert out.getvalue().endswith("\n")


def test_a_result_replaces_the_live_line():
    """A word stands alone on its line: the level is blanked before it and drawn again after it."""
    out, stats = io.StringIO(), RunStats()
    line, block = LiveLine(out), np.full(960, 16384, np.int16)
    line.clear()
    assert out.getvalue() == ""
    line.show(block, stats)
    line.clear()
    drawn, blank, after = out.getvalue().split("\r")[1:]
    assert blank == " " * len(drawn) and after == ""
    out.write("alexa\n")
    line.show(block, stats)  # at once, though no time has passed
    assert out.getvalue().endswith(f"\ralexa\n\r{drawn}")
    line.end()
    line.clear()
    assert out.getvalue().endswith("\n")


def test_a_machine_that_is_too_slow_is_told_how_far_behind_it_is(install):
    install(np.zeros(96_000, np.int16))  # plays at once: all but the first block waits
    microphone, out, stats = Microphone(seconds=2.0), io.StringIO(), RunStats()
    line = LiveLine(out, behind_s=lambda: microphone.behind_s)
    blocks = microphone.blocks()
    block = next(blocks)
    time.sleep(0.2)
    block = next(blocks)
    stats.audio_s = 0.04
    line.show(block, stats)
    assert "behind 1.9 s" in out.getvalue() or "behind 2.0 s" in out.getvalue()
    list(blocks)
    assert microphone.behind_s == 0.0
