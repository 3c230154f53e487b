"""The run folder's files, each written whole or not at all: a crash or a full disk keeps the last good one.

state.pt for --resume, metrics.csv, validation.csv, skipped.csv, and the same numbers for TensorBoard. run.json tells
whether a folder is the run that is to be resumed.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill import files
from reuse_distill.distill.data.batches import Position
from reuse_distill.distill.data.utterances import Skipped
from reuse_distill.distill.files import write_atomically
from reuse_distill.distill.recipe import TrainingRecipe, difference
from reuse_distill.distill.teachers import TeacherInfo
from reuse_distill.distill.training.launch import RunSettings
from reuse_distill.runtime.errors import RdError, install_hint
from reuse_distill.runtime.untrusted_input import from_dict, to_dict
from reuse_distill.student import StudentConfig

STATE, METRICS, VALIDATION, RECIPE = "state.pt", "metrics.csv", "validation.csv", "run.json"
FLUSH_S = 10.0
START_AGAIN = "start again in another folder"
LEFT_OUT = ("step", "epoch")
RECORDINGS = ("noise", "rooms")  # settings of the data that name recordings, whose fingerprints are compared instead
NOT_COMPARED = ("versions",)  # what may differ between a run and its continuation


def save_state(folder: Path, *, step: int, position: Position, model: Any, optimiser: Any, precision: Any) -> None:
    """Everything that ``--resume`` needs, after ``step`` steps; ``position`` is the next batch."""
    buffer = io.BytesIO()
    content = {
        "step": step,
        "position": [position.epoch, position.batch],
        "model": model,
        "optimiser": optimiser,
        "precision": precision,
    }
    torch.save(content, buffer)
    write_atomically(folder / STATE, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any]:
    """What ``save_state`` wrote. Raises RdError where it is missing or damaged; nothing in it is executed."""
    path = folder / STATE
    if not path.is_file():
        raise RdError(f"{folder} has no {STATE} to resume from", hint="run without --resume, into an empty folder")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle raises many kinds, and torch's text is advice to trust it
        raise RdError(
            f"{path} is damaged: no state can be read from it ({type(error).__name__})",
            hint=START_AGAIN,
        ) from None
    _check_state(path, state)
    return state


def _check_state(path: Path, state: Any) -> None:
    """Raise RdError where what was read is not what ``save_state`` writes."""
    kinds = {"step": int, "position": list, "model": dict, "optimiser": dict, "precision": dict}
    for key, kind in kinds.items():
        value = state.get(key) if isinstance(state, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            actual = type(value).__name__ if isinstance(state, dict) and key in state else "missing"
            raise RdError(f"{path} is damaged: {key} is {actual}, not {kind.__name__}", hint=START_AGAIN)
    position = state["position"]
    if state["step"] < 0 or len(position) != 2 or not all(isinstance(n, int) and n >= 0 for n in position):
        raise RdError(f"{path} is damaged: step {state['step']}, position {position}", hint=START_AGAIN)


def restored(path: Path, what: str, restore: Callable[[], object]) -> None:
    """Give a part of the state to what it is of. Raises RdError where they do not fit."""
    try:
        restore()
    except RdError:
        raise
    except Exception as error:  # torch raises several kinds for keys and shapes that do not fit
        reason = " ".join(str(error).split())[:200]
        raise RdError(f"{path} is damaged: its {what} does not fit this run: {reason}", hint=START_AGAIN) from None


class MetricsFile:
    """metrics.csv, one row per step, or validation.csv. Rows after the step that a run resumes from are dropped."""

    def __init__(self, folder: Path, *, keep_steps: int = 0, name: str = METRICS) -> None:
        self.path = folder / name
        self.rows: list[dict[str, float]] = [row for row in read_metrics(folder, name) if row["step"] <= keep_steps]
        self._written, self._due_s = 0, time.monotonic() + FLUSH_S
        self.path.unlink(missing_ok=True)
        self.flush()

    def add(self, row: dict[str, float]) -> None:
        """Keep a row; ``flush`` writes it, and so does this method now and then, for those who watch the file."""
        self.rows.append(row)
        if time.monotonic() >= self._due_s:
            self.flush()

    def flush(self) -> None:
        """Append the new rows to the file."""
        self._due_s = time.monotonic() + FLUSH_S
        new = self.rows[self._written :]
        if not new:
            return
        try:
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, fieldnames=list(self.rows[0]))
                if self._written == 0:
                    writer.writeheader()
                writer.writerows(new)
        except OSError as error:
            raise RdError(
                f"{self.path} was not written: {error.strerror or error}",
                hint="free disk space, then continue with --resume",
            ) from None
        self._written = len(self.rows)


def read_metrics(folder: Path, name: str = METRICS) -> list[dict[str, float]]:
    """The rows of metrics.csv (or validation.csv) as numbers; an unfinished last line is left out."""
    path = folder / name
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    whole = [row for row in rows if None not in row and all(value not in (None, "") for value in row.values())]
    try:
        numbers = [{key: float(value) for key, value in row.items()} for row in whole]
    except ValueError as error:
        raise RdError(
            f"{path} is damaged: {error}", hint="remove the file: the run continues without its rows"
        ) from None
    if numbers and "step" not in numbers[0]:
        raise RdError(f"{path} is damaged: it has no column step", hint="remove the file: the run continues without")
    return numbers


class TensorBoardLog:
    """Event files in RUN/tensorboard; a resumed run purges what came after the step it resumes from."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RdError("tensorboard is not installed", hint=install_hint("distill")) from None
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def add(self, row: dict[str, float], *, prefix: str = "") -> None:
        """One row of metrics.csv, or of validation.csv under a prefix."""
        for name, value in row.items():
            if name not in LEFT_OUT:
                self._writer.add_scalar(prefix + name, value, int(row["step"]))

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


def prepare_folder(settings: RunSettings, identity: dict[str, Any], lock: files.FolderLock) -> None:
    """Refuse a folder of another run, or one that is in use; make a fresh run's."""
    path = settings.output / RECIPE
    if settings.resume and path.is_file():
        lock.take()
        check_same_run(files.read_json(path), identity, settings.output)
        return
    if settings.resume:
        raise RdError(f"{settings.output} holds no run to resume", hint="leave --resume out to start one")
    if path.exists() or (settings.output / STATE).exists():
        raise RdError(f"{settings.output} already holds a run", hint="continue with --resume, or name another folder")
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RdError(
            f"{settings.output} cannot be made: {error.strerror or error}", hint="name another folder for --output"
        ) from None
    lock.take()
    files.write_json(path, identity)


def resumed_state(settings: RunSettings) -> dict[str, Any] | None:
    """The state to resume from. A run that was killed before its first checkpoint starts over."""
    if not settings.resume or not (settings.output / STATE).exists():
        return None
    return load_state(settings.output)


def check_same_run(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise RdError where a run folder's record ``before`` is damaged, or is of another run than ``now``."""
    where = f"{folder}/{RECIPE}"
    if not isinstance(before, dict):
        raise RdError(f"{where} is damaged: it is not the record of a run", hint=START_AGAIN)
    before.setdefault("processes", now["processes"])
    before["teacher"] = to_dict(from_dict(TeacherInfo, before.get("teacher"), where=f"{where}: teacher"))
    # Settings that came later have their defaults.
    for name, kind in (("recipe", TrainingRecipe), ("student", StudentConfig)):
        before[name] = to_dict(from_dict(kind, before.get(name), where=f"{where}: {name}"))
    before, as_json = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    for name in NOT_COMPARED:
        before.pop(name, None)
        as_json.pop(name, None)
    _forget_places(before, as_json)
    changes = difference(before, as_json)
    if changes:
        raise RdError(
            f"{folder} is another run: " + "; ".join(changes[:5]),
            hint="resume with the recipe, overrides, teacher, data and processes that it was started with",
        )


def _forget_places(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Where a teacher, noise or rooms lie does not matter as long as they are the same, as with the data itself."""
    for name in RECORDINGS:
        if now.get(name) is not None and before.get(name) == now[name]:
            before["recipe"]["data"][name] = now["recipe"]["data"][name]
    teacher = before.get("teacher")
    if isinstance(teacher, dict) and teacher.get("sha256") == now["teacher"]["sha256"]:
        teacher["name"] = now["teacher"]["name"]


def write_skipped(folder: Path, skipped: Iterable[Skipped]) -> None:
    """Add to skipped.csv, which a resumed run continues with."""
    path = folder / "skipped.csv"
    rows = [[str(s.path), "damaged" if s.bad else "too short", s.reason] for s in skipped]
    if not rows:
        return
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [*list(csv.reader(stream))[1:], *rows]
    text = io.StringIO()
    csv.writer(text).writerows([["file", "kind", "reason"], *dict.fromkeys(map(tuple, rows))])
    files.write_atomically(path, text.getvalue().encode())
