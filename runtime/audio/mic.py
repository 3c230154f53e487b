"""The microphone as a source of blocks, and the line that shows that it is heard."""

from __future__ import annotations

import math
import queue
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
from reuse_distill.runtime.errors import RdError, install_hint
from reuse_distill.runtime.streaming.latency import RunStats

SILENT_DBFS = -120.0
LINE_EVERY_S = 0.2
BLOCK_S = 0.02
WAIT_S = 0.25
WORTH_TELLING_S = 0.5


def sounddevice() -> Any:
    """The sounddevice module, or an RdError that names the extra."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the PortAudio library is missing
        raise RdError(
            f"the microphone needs sounddevice and PortAudio: {error}",
            hint=f"{install_hint('mic')}; on Debian and Ubuntu also apt install libportaudio2",
        ) from None
    return sounddevice


def list_devices() -> str:
    """A table of the input devices."""
    lines = [
        f"{index:3d}  {device['name']}  ({device['max_input_channels']} in, {device['default_samplerate']:.0f} Hz)"
        for index, device in enumerate(sounddevice().query_devices())
        if device["max_input_channels"] > 0
    ]
    return "\n".join(lines) if lines else "no input device"


@dataclass
class Microphone:
    """An input device. ``blocks`` yields int16 (T,) for ``seconds`` of audio, or until ``stop``."""

    device: int | str | None = None
    wanted_rate_hz: int | None = None  # None: what the device prefers
    seconds: float | None = None

    def __post_init__(self) -> None:
        self._module = sounddevice()
        self.rate_hz = self.wanted_rate_hz or int(self._query()["default_samplerate"])
        self.overflows = 0  # times that the device had to drop samples
        self.behind_s = 0.0  # recorded and not yet taken
        self._stopped = False

    def stop(self) -> None:
        """End ``blocks`` after the block that is being waited for."""
        self._stopped = True

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks of 20 ms as they are recorded. Raises RdError where the device cannot be opened or goes away."""
        heard: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

        def callback(data: np.ndarray, _frames: int, _time: Any, status: Any) -> None:
            self.overflows += bool(getattr(status, "input_overflow", False))
            heard.put(data[:, 0].copy())

        left = sys.maxsize if self.seconds is None else round(self.seconds * self.rate_hz)
        with self._open(callback) as device:
            while left > 0 and not self._stopped:
                try:
                    block = heard.get(timeout=WAIT_S)[:left]
                except queue.Empty:
                    if device.active:
                        continue
                    raise RdError("the input device stopped recording", hint="was it unplugged?") from None
                left -= len(block)
                self.behind_s = heard.qsize() * BLOCK_S
                yield block

    def _query(self) -> Any:
        try:
            return self._module.query_devices(self.device, "input")
        except (ValueError, self._module.PortAudioError) as error:
            raise RdError(f"no such input device: {error}", hint="rd-stream --list-devices shows them") from None

    def _open(self, callback: Any) -> Any:
        try:
            return self._module.InputStream(
                samplerate=self.rate_hz, device=self.device, channels=1, dtype="int16",
                blocksize=int(BLOCK_S * self.rate_hz), callback=callback,
            )  # fmt: skip
        except (ValueError, self._module.PortAudioError) as error:
            raise RdError(
                f"the input device cannot record at {self.rate_hz} Hz: {error}",
                hint="try another --rate or --device; rd-stream --list-devices shows them",
            ) from None


def level_dbfs(samples: np.ndarray) -> float:
    """Root mean square of int16 samples (T,) in dB of full scale, SILENT_DBFS at least."""
    if not len(samples):
        return SILENT_DBFS
    power = float(np.square(samples.astype(np.float64) / 32768).mean())
    return max(SILENT_DBFS, 10 * math.log10(power)) if power > 0 else SILENT_DBFS


class LiveLine:
    """One line on a terminal, rewritten in place: level, time, frames, RTF, and how far the machine is behind."""

    def __init__(self, out: TextIO, behind_s: Callable[[], float] = lambda: 0.0) -> None:
        self._out, self._behind_s = out, behind_s
        self._shown_s = -math.inf
        self._width = 0  # of what is on the line

    def show(self, samples: np.ndarray, stats: RunStats) -> None:
        """Rewrite the line, at most every 0.2 s of audio."""
        if stats.audio_s - self._shown_s < LINE_EVERY_S:
            return
        self._shown_s = stats.audio_s
        level = level_dbfs(samples)
        bar = "#" * round(20 * (level - SILENT_DBFS / 2) / (-SILENT_DBFS / 2)) if level > SILENT_DBFS / 2 else ""
        behind = f"behind {self._behind_s():.1f} s" if self._behind_s() > WORTH_TELLING_S else ""
        line = (
            f"[{bar:<20}] {level:6.1f} dBFS  {stats.audio_s:7.1f} s  {stats.frames} frames  "
            f"RTF {stats.rtf or 0:.3f}  {behind:<14}"
        )
        self._width = len(line)
        self._out.write(f"\r{line}")
        self._out.flush()

    def clear(self) -> None:
        """Blank the line, for a result that is printed in its place; ``show`` draws it again below."""
        if self._width:
            self._out.write(f"\r{'':<{self._width}}\r")
            self._out.flush()
            self._width, self._shown_s = 0, -math.inf

    def end(self) -> None:
        """Leave the line."""
        self._out.write("\n")
        self._out.flush()
        self._width = 0
