"""What a device answers is untrusted: its size, nesting, numbers, texts and lengths are checked before it is used.

Every defect is ``NotMeasured``, the verdict of that device alone; what the other devices of a call answered stays.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from reuse_distill.devices.measuring.measurement import METRICS, Measurement, StreamSamples
from reuse_distill.devices.transports.transport import Finished, NotMeasured
from reuse_distill.devices.worker import ERROR_MARK, RESULT_MARK
from reuse_distill.report.plain_text import one_line
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import from_dict

MAX_ANSWER_BYTES = 16 << 20  # of one answer: more than a day of chunks of 160 ms
MAX_DEPTH, MAX_TEXT, MAX_DIGITS, MAX_ENTRIES = 8, 2000, 20, 200
MAX_STREAMS, MAX_READINGS, MAX_CHUNK_FRAMES = 1024, 200_000, 3000
MAX_TIME_S, MAX_LATENCY_MS = 1e7, 1e7
MAX_QUANTITY = 1e18
SETTINGS = ("governor", "power_mode")
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([.,]\d+)?(Z|[+-]\d\d:\d\d)?$")


def measurement_in(finished: Finished) -> Measurement | None:
    """The result line of a worker's output, or None without one. Raises NotMeasured for one that is no result."""
    text = _marked(finished.stdout, RESULT_MARK)
    return None if text is None else measurement_from(text, where="the device's result")


def measurement_from(text: str, *, where: str) -> Measurement:
    """A measurement from its JSON. Raises NotMeasured, with the reason, for anything that is not a whole one."""
    data = _parsed(text, where=where)
    try:
        measurement = from_dict(Measurement, _checked(data, where=where), where=where)
    except NotMeasured:
        raise
    except RdError as error:
        raise NotMeasured(error.message, hint=error.hint) from None
    _check_measurement(measurement, where=where)
    return measurement


def worker_error(finished: Finished) -> NotMeasured | None:
    """The error that a worker reported in its own words; None where it reported none that can be read."""
    text = _marked(finished.stdout, ERROR_MARK)
    if text is None:
        return None
    try:
        data = _parsed(text, where="the device's error")
    except NotMeasured:
        return None
    if not isinstance(data, dict) or not isinstance(data.get("message"), str):
        return None
    hint = data.get("hint")
    return NotMeasured(_short(data["message"]), hint=_short(hint) if isinstance(hint, str) else None)


def no_result(finished: Finished, *, where: str) -> NotMeasured:
    """A worker that ended without a result: its status and the last lines it left."""
    last = "; ".join(_short(line, 300) for line in finished.messages[-3:])
    detail = f": {last}" if last else ""
    if finished.too_long:
        return NotMeasured(f"{where}: answered more than {MAX_ANSWER_BYTES >> 20} MiB and was stopped{detail}")
    if finished.timed_out:
        return NotMeasured(f"{where}: not done after {finished.seconds:.0f} s and stopped{detail}")
    if finished.status == -9 or finished.status == 137:
        return NotMeasured(f"{where}: the measuring process was killed{detail}", hint="was it out of memory?")
    status = f"ended with status {finished.status}"
    return NotMeasured(f"{where}: the measuring process {status}{detail}", hint="run it there by hand to see more")


def _marked(output: str, mark: str) -> str | None:
    """What follows ``mark`` on the first line that begins with it."""
    start = 0 if output.startswith(mark) else output.find("\n" + mark) + 1
    if not output.startswith(mark, start):
        return None
    end = output.find("\n", start)
    return output[start + len(mark) : None if end < 0 else end]


def _parsed(text: str, *, where: str) -> Any:
    if len(text) > MAX_ANSWER_BYTES:
        raise NotMeasured(f"{where}: {len(text) / 1e6:.0f} MB, at most {MAX_ANSWER_BYTES / 1e6:.0f} MB are read")
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise NotMeasured(f"{where}: not usable ({_short(what, 120)})", hint="was it cut off?") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or abs(value) > MAX_QUANTITY:
        raise ValueError(f"{text[:24]} is out of range")
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _checked(value: Any, *, where: str, depth: int = 0) -> Any:
    """The parsed answer with its texts made printable. Raises NotMeasured for too deep, too long or too many."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise NotMeasured(f"{where}: a text of {len(value)} characters, at most {MAX_TEXT} are read")
        return one_line(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth >= MAX_DEPTH:
        raise NotMeasured(f"{where}: nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return [item if type(item) in (float, int) else _checked(item, where=where, depth=depth + 1) for item in value]
    if len(value) > MAX_ENTRIES:
        raise NotMeasured(f"{where}: {len(value)} entries, at most {MAX_ENTRIES} are read")
    return {
        _checked(key, where=where, depth=depth + 1): _checked(item, where=where, depth=depth + 1)
        for key, item in value.items()
    }


def _check_measurement(measurement: Measurement, *, where: str) -> None:
    """What the types do not say. Raises NotMeasured."""
    bundle = measurement.bundle
    _require(0 < bundle.chunk_frames <= MAX_CHUNK_FRAMES, f"{where}: {bundle.chunk_frames} frames a chunk")
    _require(0 <= bundle.worst_latency_ms <= MAX_LATENCY_MS, f"{where}: worst latency {bundle.worst_latency_ms} ms")
    _require(bool(_TIME.match(measurement.taken_at)), f"{where}: taken_at {measurement.taken_at!r:.60}")
    for name in SETTINGS:
        _require(name in measurement.settings, f"{where}: settings lack {name!r}")
    for name, value in measurement.metrics.items():
        _require(
            name not in METRICS or value is None or value >= 0 or name == "temperature", f"{where}: {name} {value}"
        )
    _require(len(measurement.readings) <= MAX_READINGS, f"{where}: {len(measurement.readings)} sensor readings")
    _require(len(measurement.notes) <= MAX_ENTRIES, f"{where}: {len(measurement.notes)} notes")
    _require(0 < len(measurement.samples) <= MAX_STREAMS, f"{where}: {len(measurement.samples)} streams")
    for number, stream in enumerate(measurement.samples, start=1):
        _check_samples(stream, where=f"{where}: stream {number}")


def _check_samples(stream: StreamSamples, *, where: str) -> None:
    counts = len(stream.at_s), len(stream.latency_ms), len(stream.service_ms)
    _require(len(set(counts)) == 1, f"{where}: {counts[0]} times for {counts[1]} latencies and {counts[2]} pushes")
    _require(counts[0] > 0, f"{where}: no sample")
    _require(all(0 <= value <= MAX_TIME_S for value in stream.at_s), f"{where}: times outside 0 to {MAX_TIME_S:g} s")
    for name, values in (("latency", stream.latency_ms), ("push", stream.service_ms)):
        _require(
            all(0 < value <= MAX_LATENCY_MS for value in values), f"{where}: {name} times of 0 ms or less, or endless"
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise NotMeasured(message, hint="the device's answer is not one of rd-latency's worker")


def _short(text: str, most: int = MAX_TEXT) -> str:
    clean = one_line(text[: most + 1])
    return clean if len(text) <= most else clean[:most] + " …"
