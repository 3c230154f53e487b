"""What the device tells about itself while it runs: clocks, governor, power mode, temperature, throttling, power.

Everything is read from documented files and commands; what a device does not tell is None here and `unmeasured` in a
report. Reading takes time itself: it happens once a second from the thread that does not push audio, and its cost is
part of the result (``Reading.cost_ms``).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

CPU = "sys/devices/system/cpu"
# Bits of `vcgencmd get_throttled` (Raspberry Pi documentation): now in 0-3, since boot in 16-19.
PI_THROTTLED_NOW = 0b1111
NOT_LOCKED = "not locked"


@dataclass(frozen=True)
class Reading:
    """One look at the sensors."""

    time_s: float
    clock_hz: float | None  # mean of the cores
    temperature_c: float | None  # hottest zone
    throttle_events: int | None  # counter where there is one; a rise during the run is throttling
    throttled_now: bool | None
    power_w: float | None
    energy_j: float | None  # counter
    cost_ms: float


@dataclass
class Sensors:
    """Reader of one machine's sensors; finds out once which of them exist."""

    root: Path = Path("/")
    energy_source: str = "unmeasured"
    _zones: list[Path] = field(default_factory=list)
    _clocks: list[Path] = field(default_factory=list)
    _counters: list[Path] = field(default_factory=list)
    _rapl: list[Path] = field(default_factory=list)
    _rails: list[tuple[Path, Path]] = field(default_factory=list)
    _battery: Path | None = None
    _counted: dict[Path, tuple[float, float]] = field(default_factory=dict)  # last raw value and the sum so far, J

    def __post_init__(self) -> None:
        self._zones = sorted(self.root.glob("sys/class/thermal/thermal_zone*/temp"))
        self._clocks = sorted(self.root.glob(f"{CPU}/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._counters = sorted(self.root.glob(f"{CPU}/cpu[0-9]*/thermal_throttle/core_throttle_count"))
        self._counters += sorted(self.root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"))  # Jetson over-current
        rapl = sorted(self.root.glob("sys/class/powercap/intel-rapl:[0-9]/energy_uj"))
        self._rapl = [path for path in rapl if _number(path) is not None]
        self._rails = _input_rail(self.root)
        self._battery = next(iter(sorted(self.root.glob("sys/class/power_supply/*/power_now"))), None)
        names = {"RAPL packages": self._rapl, "INA3221 VDD_IN": self._rails, "battery": self._battery}
        self.energy_source = next((name for name, source in names.items() if source), "unmeasured")

    def read(self, time_s: float) -> Reading:
        """All sensors now; ``time_s`` is the time of the run that the caller stamps it with."""
        began = time.perf_counter()
        clocks = [value for path in self._clocks if (value := _number(path)) is not None]
        zones = [value / 1000 for path in self._zones if (value := _number(path)) is not None]
        counts = [value for path in self._counters if (value := _number(path)) is not None]
        joules = [value for path in self._rapl if (value := self._joules(path)) is not None]
        return Reading(
            time_s=time_s,
            clock_hz=1000 * sum(clocks) / len(clocks) if clocks else None,
            temperature_c=max(zones) if zones else None,
            throttle_events=int(sum(counts)) if counts else None,
            throttled_now=self._throttled_now(),
            power_w=self._power_w(),
            energy_j=sum(joules) if joules else None,
            cost_ms=1000 * (time.perf_counter() - began),
        )

    def _throttled_now(self) -> bool | None:
        flag = _text(self.root / "sys/devices/platform/soc/soc:firmware/get_throttled")
        if flag:
            return bool(int(flag, 16) & PI_THROTTLED_NOW)
        return None

    def _joules(self, path: Path) -> float | None:
        """A RAPL counter that continues where the register wraps (``max_energy_range_uj``: minutes at full load)."""
        raw = _number(path)
        if raw is None:
            return None
        last, total = self._counted.get(path, (raw, raw * 1e-6))
        span = _number(path.with_name("max_energy_range_uj")) if raw < last else 0.0
        if span is None:
            return None
        total += (raw - last + span) * 1e-6
        self._counted[path] = raw, total
        return total

    def _power_w(self) -> float | None:
        if self.energy_source == "battery" and self._battery is not None:
            status, microwatts = _text(self._battery.with_name("status")), _number(self._battery)
            return microwatts * 1e-6 if status == "Discharging" and microwatts is not None else None
        values = [(_number(volt), _number(amp)) for volt, amp in self._rails]
        watts = [v * a * 1e-6 for v, a in values if v is not None and a is not None]
        return sum(watts) if watts else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _input_rail(root: Path) -> list[tuple[Path, Path]]:
    """Voltage (mV) and current (mA) files of a Jetson's INA3221 channel named VDD_IN, the whole module's input."""
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        if _text(label) == "VDD_IN":
            channel = label.name[2:].split("_")[0]
            return [(label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input"))]
    return []


def settings(root: Path = Path("/")) -> dict[str, str]:
    """Governor, highest clock, whether clocks are locked, and power mode: what stays as it is during a run."""
    governors = {text for path in root.glob(f"{CPU}/cpu[0-9]*/cpufreq/scaling_governor") if (text := _text(path))}
    highest = [value for path in root.glob(f"{CPU}/cpu[0-9]*/cpufreq/scaling_max_freq") if (value := _number(path))]
    return {
        "governor": " ".join(sorted(governors)) or "unmeasured",
        "highest_clock": f"{max(highest) / 1e6:.2f} GHz" if highest else "unmeasured",
        "clocks": locked_clocks(root),
        "power_mode": _nvpmodel() or "unmeasured",
    }


def locked_clocks(root: Path = Path("/")) -> str:
    """``locked at …`` where every core's lowest clock is its highest (as jetson_clocks sets them), or the range."""
    ranges = []
    for path in root.glob(f"{CPU}/cpu[0-9]*/cpufreq/scaling_min_freq"):
        low, high = _number(path), _number(path.with_name("scaling_max_freq"))
        if low is None or high is None:
            return "unmeasured"
        ranges.append((low / 1e6, high / 1e6))
    if not ranges:
        return "unmeasured"
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    if all(low == high for low, high in ranges):
        return f"locked at {highest:.2f} GHz"
    return f"{NOT_LOCKED} ({lowest:.2f} to {highest:.2f} GHz)"


def _nvpmodel() -> str | None:
    """``nvpmodel -q`` of a Jetson: the line after the colon names the mode."""
    program = shutil.which("nvpmodel") or shutil.which("/usr/sbin/nvpmodel")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.split(":", 1)[1].strip() for line in done.stdout.splitlines() if line.startswith("NV Power Mode:")]
    return lines[0] if lines and done.returncode == 0 else None


def _status(field: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{field}:\s*(\d+) kB", text, re.M)
    return int(match[1]) * 1024 if match else None


def resident_bytes() -> int | None:
    """Resident memory now, where the system tells (Linux, Android)."""
    return _status("VmRSS")


def peak_bytes() -> int | None:
    """Largest resident memory so far.

    ``VmHWM`` on Linux: `getrusage` would count what the parent had at the fork. On macOS `getrusage`, in bytes.
    """
    if (peak := _status("VmHWM")) is not None:
        return peak
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
