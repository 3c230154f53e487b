"""Find utterances: a folder of audio, a manifest CSV with a column ``file``, or lhotse cuts; and leave files out.

Some of them can be held out of the training data: the loss on those tells whether the student learns or memorises.
Damaged files are left out, when they are found or when they are read, up to a limit.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from reuse_distill.distill.data.plan import HOLD_OUT
from reuse_distill.distill.data.remote import is_remote
from reuse_distill.distill.data.shar import is_shar, read_cuts, shard_names
from reuse_distill.runtime.audio.audio_files import AudioFile
from reuse_distill.runtime.audio.recordings import MANIFEST_SUFFIXES, SUFFIXES, find_recordings
from reuse_distill.runtime.audio.resample import resampled_length
from reuse_distill.runtime.errors import RdError, install_hint
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

CUTS_SUFFIXES = (".jsonl", ".jsonl.gz")
HASHED_BYTES = 1 << 30  # data sets up to 1 GiB are hashed by content, larger ones by name and size


@dataclass(frozen=True)
class Utterance:
    """One piece of audio. ``start_s`` and ``seconds`` cut it from ``path``; ``whole`` says that it is all of it.

    ``shard`` is the path or address of the tar that holds it; ``path`` is then its name and no file.
    """

    path: Path
    seconds: float
    start_s: float = 0.0
    whole: bool = True
    label: str = ""
    speaker: str = ""
    split: str = ""
    shard: str = ""


@dataclass(frozen=True)
class Scan:
    """What a data source holds: usable utterances in a fixed order, and what was left out."""

    utterances: tuple[Utterance, ...]
    skipped: tuple[Skipped, ...]

    @property
    def seconds(self) -> float:
        return sum(u.seconds for u in self.utterances)

    @property
    def bad(self) -> int:
        return sum(s.bad for s in self.skipped)


def find_utterances(source: Path | str, *, bad_limit: float = 0.05, split: str | None = None) -> Scan:
    """Utterances of a folder (all audio below it), a manifest CSV, lhotse cuts (.jsonl, .jsonl.gz) or lhotse Shar.

    Files that cannot be opened are skipped and listed; audio under 400 samples at 16 kHz too. ``split`` keeps the
    manifest rows whose column ``split`` equals it. Raises RdError when nothing is found or more than ``bad_limit``
    of the files are damaged, and for a ``split`` of what is no manifest.
    """
    path = Path(source)
    if split is not None and (is_remote(source) or path.is_dir() or path.suffix.lower() not in MANIFEST_SUFFIXES):
        raise RdError(
            f"data.split is {split!r}, but {source} has no column 'split': it is not a manifest CSV",
            hint="rd-distill prepare makes one, or leave data.split out",
        )
    if is_remote(source) or is_shar(source):
        return check_candidates(_in_shards(source), source, bad_limit=bad_limit)
    if path.name.endswith(CUTS_SUFFIXES):
        candidates: Iterable[Utterance] = _in_cuts(path)
    else:
        recordings = find_recordings(path, split=split)
        candidates = [Utterance(r.path, 0.0, label=r.label, speaker=r.speaker, split=r.split) for r in recordings]
    return check_candidates(candidates, path, bad_limit=bad_limit)


def check_candidates(candidates: Iterable[Utterance], source: Path | str, *, bad_limit: float) -> Scan:
    """Those that can be opened and have a frame. Raises RdError for none at all, or too many damaged ones."""
    good: list[Utterance] = []
    skipped: list[Skipped] = []
    for candidate in candidates:
        checked = _check(candidate)
        (good if isinstance(checked, Utterance) else skipped).append(checked)  # type: ignore[arg-type]
    scan = Scan(tuple(good), tuple(skipped))
    check_bad_share(scan.bad, len(good) + len(skipped), bad_limit, skipped)
    if not good:
        if skipped:
            examples = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:3])
            raise RdError(f"no usable audio in {source}, {len(skipped)} files are skipped: {examples}")
        raise RdError(f"no usable audio in {source}", hint=f"known formats: {', '.join(SUFFIXES)}")
    return scan


def fingerprint(scan: Scan) -> dict[str, object]:
    """What identifies the data of a run: count, seconds and a hash, with what the hash is of."""
    sharded = any(u.shard for u in scan.utterances)
    sizes = [(u.path, 0 if u.shard else u.path.stat().st_size) for u in scan.utterances]
    by_content = not sharded and sum(size for _, size in sizes) <= HASHED_BYTES
    digest = hashlib.sha256()
    for utterance, (path, size) in zip(scan.utterances, sizes, strict=True):
        digest.update(f"{path.name} {size} {utterance.start_s:.3f} {utterance.seconds:.3f}\n".encode())
        if by_content:
            digest.update(path.read_bytes())
    return {
        "utterances": len(scan.utterances),
        "seconds": round(scan.seconds, 3),
        "sha256": digest.hexdigest(),
        "hashed": "names and seconds" if sharded else "names, sizes and contents" if by_content else "names and sizes",
        "skipped": len(scan.skipped),
    }


def _check(candidate: Utterance) -> Utterance | Skipped:
    if candidate.shard:  # nothing of it is opened before it is read
        return _long_enough(candidate, candidate.seconds, round(candidate.seconds * SAMPLE_RATE_HZ))
    try:
        with AudioFile(candidate.path) as audio:
            samples, rate_hz = audio.promised_samples, audio.sample_rate_hz
    except RdError as error:
        return Skipped(candidate.path, error.message.removeprefix(f"{candidate.path}: "), bad=True)
    seconds = samples / rate_hz if candidate.whole else candidate.seconds
    at_16k = resampled_length(samples, rate_hz) if candidate.whole else round(seconds * SAMPLE_RATE_HZ)
    return _long_enough(candidate, seconds, at_16k)


def _long_enough(candidate: Utterance, seconds: float, at_16k: int) -> Utterance | Skipped:
    if at_16k < RECEPTIVE_FIELD_SAMPLES:
        reason = f"{at_16k} samples at 16 kHz, one frame needs {RECEPTIVE_FIELD_SAMPLES}"
        return Skipped(candidate.path, reason, bad=False)
    return dataclasses.replace(candidate, seconds=seconds)


def _in_shards(source: Path | str) -> Iterator[Utterance]:
    for cuts, audio in shard_names(source):
        for cut in read_cuts(cuts):
            name = Path(audio.rpartition("/")[2]) / cut["id"]
            yield Utterance(name, cut["seconds"], label=cut["text"], speaker=cut["speaker"], shard=audio)


def _in_cuts(path: Path) -> Iterator[Utterance]:
    try:
        from lhotse import CutSet
    except ImportError:
        raise RdError("lhotse is not installed", hint=install_hint("distill")) from None
    try:
        cuts = list(CutSet.from_file(path))
    except Exception as error:  # lhotse raises many kinds for a damaged file
        raise RdError(f"{path} is not a readable lhotse cuts file: {error}") from None
    for cut in cuts:
        recording = getattr(cut, "recording", None)
        if recording is None or any(source.type != "file" for source in recording.sources):
            raise RdError(f"{path}: cut {cut.id} is not of audio files", hint="save cuts with recordings on disk")
        supervision = cut.supervisions[0] if cut.supervisions else None
        yield Utterance(
            Path(recording.sources[0].source),
            cut.duration,
            cut.start,
            whole=cut.start == 0 and cut.duration == recording.duration,
            label=(supervision.text or "") if supervision else "",
            speaker=(supervision.speaker or "") if supervision else "",
        )


@dataclass(frozen=True)
class HeldOut:
    """``training`` and ``held`` share no ``by`` (speakers, or files where not every utterance names a speaker)."""

    training: tuple[Utterance, ...]
    held: tuple[Utterance, ...]
    by: str


def hold_out(utterances: Sequence[Utterance], share: float, *, seed: int) -> HeldOut:
    """Whole speakers, drawn until they have ``share`` of the seconds; whole files where speakers are not known.

    Raises RdError for a share outside 0..1 and where there is only one speaker or file.
    """
    if not 0 < share < 1:
        raise RdError(f"a share of {share:g} cannot be held out", hint="give a share between 0 and 1, such as 0.05")
    by, groups = _groups(utterances)
    if len(groups) < 2:  # of one speaker, files are held out
        raise RdError(
            f"there is one file only ({next(iter(groups), 'none')}), so none can be held out",
            hint="give other audio to --validation",
        )
    drawn = np.random.default_rng([HOLD_OUT, seed]).permutation(len(groups))
    names, held_out_s, seconds = list(groups), share * sum(u.seconds for u in utterances), 0.0
    held: set[int] = set()
    for number in drawn[:-1]:  # one stays, whatever the share
        if seconds >= held_out_s:
            break
        held.update(groups[names[number]])
        seconds += sum(utterances[i].seconds for i in groups[names[number]])
    kept = tuple(u for i, u in enumerate(utterances) if i not in held)
    return HeldOut(kept, tuple(utterances[i] for i in sorted(held)), by)


def check_disjoint(training: Sequence[Utterance], held: Sequence[Utterance]) -> str:
    """``speakers`` or ``files``: what both sides certainly do not share. Raises RdError where they do share."""
    for by, ours, theirs in (
        ("files", {_place(u) for u in training}, {_place(u) for u in held}),
        ("speakers", {u.speaker for u in training} - {""}, {u.speaker for u in held} - {""}),
    ):
        if shared := sorted(ours & theirs):
            raise RdError(
                f"training and validation share {len(shared)} {by}: {', '.join(shared[:3])}",
                hint="give other audio to --validation, or a share such as 0.05",
            )
    return "speakers" if all(u.speaker for u in (*training, *held)) else "files"


def _place(utterance: Utterance) -> str:
    return f"{utterance.shard}/{utterance.path.name}" if utterance.shard else str(utterance.path.absolute())


def _groups(utterances: Sequence[Utterance]) -> tuple[str, dict[str, list[int]]]:
    """What is held out together: utterances of a speaker, where there are several and all are known, or of a file."""
    speakers = {u.speaker for u in utterances}
    by_speaker = "" not in speakers and len(speakers) > 1
    groups: dict[str, list[int]] = {}
    for number, utterance in enumerate(utterances):
        groups.setdefault(utterance.speaker if by_speaker else str(utterance.path), []).append(number)
    return ("speakers" if by_speaker else "files"), groups


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
