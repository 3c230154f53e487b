"""Sensors and context on made file systems: what each kind of device tells, and what it does not."""

from __future__ import annotations

import pytest
from reuse_distill.devices.measuring import host_context
from reuse_distill.devices.measuring.sensors import Sensors, settings


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_machine_that_tells_nothing_is_unmeasured(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    reading = Sensors(tmp_path).read(3.0)
    told = (
        reading.clock_hz,
        reading.temperature_c,
        reading.throttle_events,
        reading.throttled_now,
        reading.power_w,
    )
    assert told == (None,) * 5 and reading.energy_j is None
    assert reading.time_s == 3.0 and reading.cost_ms > 0
    assert set(settings(tmp_path).values()) == {"unmeasured"}


def test_a_jetson_tells_clocks_temperature_over_current_and_power(tmp_path):
    ina = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    files = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "729600\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400\n",
        "sys/class/thermal/thermal_zone0/temp": "48500\n",
        "sys/class/thermal/thermal_zone1/temp": "51250\n",
        "sys/class/hwmon/hwmon1/oc1_event_cnt": "2\n",
        f"{ina}/in1_label": "VDD_IN\n",
        f"{ina}/in1_input": "5000\n",
        f"{ina}/curr1_input": "1200\n",
        f"{ina}/in2_label": "VDD_CPU_GPU_CV\n",
    }
    write(tmp_path, files)
    sensor = Sensors(tmp_path)
    reading = sensor.read(0.0)
    assert reading.clock_hz == pytest.approx(1.12e9)
    assert reading.temperature_c == 51.25
    assert reading.throttle_events == 2
    assert reading.power_w == pytest.approx(6.0)
    assert sensor.energy_source == "INA3221 VDD_IN"
    assert settings(tmp_path)["governor"] == "schedutil" and settings(tmp_path)["highest_clock"] == "1.51 GHz"


@pytest.mark.parametrize(("flags", "throttled"), [("0", False), ("50000", False), ("50005", True), ("4", True)])
def test_a_raspberry_pi_tells_whether_it_throttles_now(tmp_path, flags, throttled):
    write(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": flags + "\n"})
    assert Sensors(tmp_path).read(0.0).throttled_now is throttled


def test_an_x86_host_counts_energy_and_throttling(tmp_path):
    files = {
        "sys/class/powercap/intel-rapl:0/energy_uj": "2500000\n",
        "sys/class/powercap/intel-rapl:0:0/energy_uj": "99\n",  # a part of the package: not counted twice
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    }
    write(tmp_path, files)
    sensor = Sensors(tmp_path)
    reading = sensor.read(0.0)
    assert reading.energy_j == pytest.approx(2.5) and reading.throttle_events == 3
    assert sensor.energy_source == "RAPL packages"


def test_nvpmodel_names_the_power_mode(tmp_path, monkeypatch):
    program = tmp_path / "nvpmodel"
    program.write_text('#!/bin/sh\n[ "$1" = -q ] && printf "NV Power Mode: MAXN_SUPER\\n2\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert settings(tmp_path)["power_mode"] == "MAXN_SUPER"


def test_context_of_a_board_and_what_makes_it_the_same_device(tmp_path):
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
        "proc/meminfo": "MemTotal:        7813000 kB\n",
        "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0\nmore\n",
    }
    write(tmp_path, files)
    first = host_context.collect(tmp_path)
    assert first.machine == "NVIDIA Jetson Orin Nano Developer Kit"
    assert first.processor == "Arm implementer 0x41 parts 0xd42"
    assert first.memory_bytes == 7813000 * 1024
    assert first.board_release == "R36 (release), REVISION: 4.0" and first.board_release in first.software
    assert "Ubuntu 22.04.5 LTS" in first.software
    write(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    assert host_context.collect(tmp_path).fingerprint != first.fingerprint


def test_this_machine_has_a_context():
    here = host_context.collect()
    assert here.cores >= 1 and here.packages["onnxruntime"] and here.python


def test_a_counter_of_energy_goes_on_where_its_register_wraps(tmp_path):
    package = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, {f"{package}/energy_uj": "90000000\n", f"{package}/max_energy_range_uj": "100000000\n"})
    sensor = Sensors(tmp_path)
    first = sensor.read(0.0).energy_j
    write(tmp_path, {f"{package}/energy_uj": "5000000\n"})
    assert sensor.read(1.0).energy_j - first == pytest.approx(15.0)
    (tmp_path / package / "max_energy_range_uj").unlink()
    write(tmp_path, {f"{package}/energy_uj": "1000000\n"})
    assert sensor.read(2.0).energy_j is None  # wrapped by nobody knows how much


def test_a_battery_tells_power_while_it_discharges(tmp_path):
    battery = "sys/class/power_supply/BAT0"
    write(tmp_path, {f"{battery}/power_now": "7500000\n", f"{battery}/status": "Discharging\n"})
    sensor = Sensors(tmp_path)
    assert sensor.energy_source == "battery" and sensor.read(0.0).power_w == pytest.approx(7.5)
    write(tmp_path, {f"{battery}/status": "Charging\n"})
    assert sensor.read(1.0).power_w is None


@pytest.mark.parametrize(
    ("low", "clocks"), [("2400000", "locked at 2.40 GHz"), ("600000", "not locked (0.60 to 2.40 GHz)")]
)
def test_clocks_are_locked_or_it_is_said(tmp_path, low, clocks):
    for core in ("cpu0", "cpu1"):
        folder = f"sys/devices/system/cpu/{core}/cpufreq"
        write(tmp_path, {f"{folder}/scaling_min_freq": low + "\n", f"{folder}/scaling_max_freq": "2400000\n"})
    assert settings(tmp_path)["clocks"] == clocks
