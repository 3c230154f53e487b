"""``rd-distill evaluate --keep``: what a probe learnt on the student's features, as a head folder for rd-export."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reuse_distill.distill.evaluation.evaluate import Outcome, Probe
from reuse_distill.distill.tasks.frozen_student import FrozenStudent
from reuse_distill.distill.tasks.head_command import card_of
from reuse_distill.distill.tasks.made_head import letters_output, linear_head, provenance_of
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student.tasks import save_head


def keep_in(
    folder: Path, student: FrozenStudent, *, seed: int, report: Callable[[str], None]
) -> Callable[[Probe, Outcome, dict[str, Any]], None]:
    """What ``evaluate`` calls after each probe: it writes ``folder/NAME`` with the head and what was measured of it.

    Raises RdError where there is a head of that name already, before anything is written.
    """

    def keep(probe: Probe, outcome: Outcome, row: dict[str, Any]) -> None:
        assert outcome.model is not None  # noqa: S101  (every probe fits one)
        name = name_of(probe)
        letters = probe.kind == "ctc"
        output = letters_output(name) if letters else TaskOutput(name, "classify", len(outcome.labels), outcome.labels)
        own = {key: value for key, value in row.items() if key != "results"}
        metrics = {**own, **{key: value for key, value in row["results"][0].items() if key != "source"}}
        provenance = provenance_of("rd-distill evaluate --keep", seed=seed, licence="")
        head = linear_head(student, output, outcome.model, metrics, provenance)
        report(f"kept: {save_head(folder / name, head, card=card_of(head))}")

    return keep


def name_of(probe: Probe) -> str:
    """The head of a probe: its kind and the data's name, in lower case."""
    data = probe.data.parent.name if probe.data.suffix else probe.data.name
    return re.sub(r"[^a-z0-9]+", "_", f"{probe.kind}_{data}".lower()).strip("_")[:40]


def check_free(folder: Path, probes: list[Probe]) -> None:
    """Raises RdError where two probes would be kept under one name, or one is there already."""
    names = [name_of(probe) for probe in probes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RdError(f"--keep: two probes would be kept as {twice}", hint="keep them in two runs")
    there = next((name for name in names if (folder / name).exists()), None)
    if there is not None:
        raise RdError(f"--keep: {folder / there} is there already", hint="name another folder, or remove it")
