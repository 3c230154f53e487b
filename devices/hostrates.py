"""What one core of this machine can do at most, as far as NumPy reaches; run as a program it prints JSON.

In a process of its own, so that the linear algebra behind NumPy can be held to one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
from reuse_distill.devices.estimate import Rates
from reuse_distill.runtime.errors import RdError

SIZE = 768
REPEATS = 12
COPY_BYTES = 1 << 28
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


def measure_here() -> tuple[float, float]:
    """Best of several: fp32 MACs a second of a matrix product, bytes a second of a read."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIZE, SIZE)).astype(np.float32) for _ in range(2))
    data = np.ones(COPY_BYTES // 8)
    product = min(_seconds(lambda: a @ b) for _ in range(REPEATS))
    read = min(_seconds(data.sum) for _ in range(REPEATS))
    return SIZE**3 / product, COPY_BYTES / read


def _seconds(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began


def host_rates(*, precision: str, threads: int) -> Rates:
    """Measured rates of one thread, times ``threads`` for computing. NumPy has no int8 product to measure: for int8 the
    fp32 rate is the slow end of the band and four times that rate (the width of the numbers) the fast one."""
    env = {**os.environ, **ONE_THREAD}
    done = subprocess.run(
        [sys.executable, "-m", "reuse_distill.devices.hostrates"], capture_output=True, text=True, env=env
    )
    if done.returncode != 0:
        raise RdError(f"the host's rates could not be measured: {done.stderr.strip()[-200:]}")
    macs, bandwidth = json.loads(done.stdout)
    note, gain = ("; int8 up to four times that", 4.0) if precision == "int8" else ("", 1.0)
    origin = f"measured here: fp32 matrix product and memory read of one thread{note}"
    return Rates(macs * threads, bandwidth, origin, gain)


if __name__ == "__main__":
    print(json.dumps(measure_here()))
