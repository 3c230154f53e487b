"""The judge on this machine beside a noisy neighbour: real runs in processes of their own, minutes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from threading import Event

import numpy as np
import pytest
from reuse_distill.devices.judging.baselines import series_of
from reuse_distill.devices.judging.judge import compare
from reuse_distill.devices.measuring.measurement import Request
from reuse_distill.devices.transports.local import Local

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

WORK, SLOWER_WORK = 600, 720  # nodes of the toy: a fifth more of the same, no sleep
RUNS, SLOW_RUNS = 16, 10
BASELINE_RUNS, VERDICTS = 8, 30
REQUEST = Request(mode="back-to-back", seconds=24.0, warmup_chunks=20)  # 600 chunks
# Busy for 50 to 400 ms, idle for as long: what another job on a shared runner looks like.
NEIGHBOUR = """
import random, time
rng = random.Random(4)
while True:
    end = time.monotonic() + rng.uniform(0.05, 0.4)
    while time.monotonic() < end:
        sum(range(1000))
    time.sleep(rng.uniform(0.05, 0.4))
"""


@contextmanager
def noisy_neighbour():
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def runs(bundle, count):
    made = []
    for _ in range(count):
        done = Local().measure(bundle, REQUEST, limit_s=900, progress=lambda line: None, cancel=Event())
        made.append(series_of(done))
    return made


@pytest.fixture(scope="module")
def measured(make_bundle):
    """Runs of a bundle and of a slower one in turns, so that both meet the same machine."""
    plain, slower = make_bundle(work=WORK, name="plain"), make_bundle(work=SLOWER_WORK, name="slower")
    with noisy_neighbour():
        made, slow = [], []
        for number in range(RUNS):
            made += runs(plain, 1)
            slow += runs(slower, 1) if number < SLOW_RUNS else []
    levels = {"plain": made, "slower": slow}
    print(json.dumps({name: [round(float(np.median(run)), 3) for run in series] for name, series in levels.items()}))
    return made, slow


def test_unchanged_runs_are_never_red(measured):
    made, _ = measured
    rng, verdicts = np.random.default_rng(0), Counter()
    for _ in range(VERDICTS):
        order = rng.permutation(len(made))
        baseline = [made[i] for i in order[:BASELINE_RUNS]]
        verdicts[compare(baseline, made[order[BASELINE_RUNS]]).verdict] += 1
    print(dict(verdicts))
    assert verdicts["regressed"] == 0 and verdicts.total() == VERDICTS


def test_a_fifth_more_work_is_found_or_called_unmeasured_and_never_passed(measured):
    made, slow = measured
    rng, verdicts = np.random.default_rng(1), Counter()
    for run in slow:
        baseline = [made[i] for i in rng.permutation(len(made))[:BASELINE_RUNS]]
        verdicts[compare(baseline, run).verdict] += 1
    print(dict(verdicts))
    assert verdicts["pass"] == 0 and verdicts["regressed"] + verdicts["unmeasured"] == len(slow)
