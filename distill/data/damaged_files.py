"""Files that are left out of a run, and how many damaged ones it accepts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reuse_distill.runtime.errors import RdError

if TYPE_CHECKING:
    from reuse_distill.distill.data.utterances import Utterance


@dataclass(frozen=True)
class Skipped:
    """A file that was left out. ``bad`` is true for damage, false for audio that is merely too short."""

    path: Path
    reason: str
    bad: bool


@dataclass
class DamagedFiles:
    """Utterances of a source that turned out to be damaged when they were read; threads and processes note them.

    before: files that the scan had left out already. limit: the largest share of all files that is accepted.
    """

    utterances: Sequence[Utterance]
    before: int
    limit: float
    skipped: dict[int, Skipped] = field(default_factory=dict)
    shared: int = 0  # how many of them every process of the run knows

    @property
    def unshared(self) -> int:
        """Damaged files that this process has met and not reported to the others."""
        return len(self.skipped) - self.shared

    def note(self, number: int, error: RdError) -> None:
        """Utterance ``number`` cannot be read. Raises RdError above the limit, and where none is left."""
        path = self.utterances[number].path
        self.skipped[number] = Skipped(path, error.message.removeprefix(f"{path}: "), bad=True)
        bad, files = self._check()
        if bad == files:
            raise RdError(f"none of the {files} files can be read", hint="the last error: " + error.message)

    def share(self, everywhere: Mapping[int, Skipped]) -> None:
        """Count the damaged files of every process, known to all at the same time. Raises RdError above the limit."""
        self.skipped.update(everywhere)
        self.shared = len(everywhere)
        self._check()

    def _check(self) -> tuple[int, int]:
        """How many files are damaged, of how many."""
        damaged = self.skipped.copy()  # in one go: other threads may be adding to it
        bad, files = self.before + len(damaged), self.before + len(self.utterances)
        check_bad_share(bad, files, self.limit, damaged.values())
        return bad, files


def check_bad_share(bad: int, files: int, limit: float, skipped: Iterable[Skipped]) -> None:
    """Raise RdError when more than ``limit`` of ``files`` are damaged, naming the first three."""
    if files and bad / files > limit:
        examples = "; ".join(f"{s.path}: {s.reason}" for s in [s for s in skipped if s.bad][:3])
        raise RdError(
            f"{bad} of {files} files are damaged ({100 * bad / files:.1f} %, the limit is {100 * limit:g} %): "
            f"{examples}",
            hint="repair or remove them, or raise the limit: data.bad_limit=, --bad-limit of rd-distill prepare",
        )
