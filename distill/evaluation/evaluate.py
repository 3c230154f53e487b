"""Run probes over several sources of features on the same data and splits; results name their data.

These are not SUPERB scores: other data, smaller probes. They compare sources with each other, on the data given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.distill.data.reading import read_utterance, readable
from reuse_distill.distill.data.utterances import Utterance, find_utterances, fingerprint
from reuse_distill.distill.evaluation.bootstrap import Interval, difference_interval, ratio_interval
from reuse_distill.distill.evaluation.features import PARTS, Features, pooled
from reuse_distill.distill.evaluation.linear_probes import LinearModel, ctc_probe, letters_of, linear_probe
from reuse_distill.distill.evaluation.splits import UNKNOWN, by_speaker, by_utterance, given
from reuse_distill.runtime.cli.progress import with_progress
from reuse_distill.runtime.errors import RdError, nearest
from torch import Tensor

BAD_LIMIT = 0.05  # largest share of damaged files that is accepted
KINDS = ("label", "speaker", "ctc")
MEASURES = {"label": "accuracy", "speaker": "accuracy", "ctc": "letter error rate"}
BETTER = {"accuracy": "higher", "letter error rate": "lower"}
Report = Callable[[str], None]


@dataclass(frozen=True)
class Probe:
    """What to predict from which data. ``label``: the manifest's label. ``speaker``: the speaker. ``ctc``: letters."""

    kind: str
    data: Path

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RdError(f"there is no probe {self.kind!r}", hint=nearest(self.kind, KINDS))

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.data.parent.name}/{self.data.name}"


def probe_of(text: str) -> Probe:
    """``label=manifest.csv`` as a probe. Raises RdError for text that names none."""
    kind, equals, path = text.partition("=")
    if not equals or not path:
        raise RdError(f"{text!r} names no probe", hint="write label=MANIFEST, speaker=MANIFEST or ctc=MANIFEST")
    return Probe(kind, Path(path))


@dataclass(frozen=True)
class Outcome:
    """One source on one probe: per test item the numerator and denominator of the measure."""

    source: str
    numerators: list[float]
    denominators: list[float]
    layer_weights: list[float]
    model: LinearModel | None = None  # what was fitted
    labels: tuple[str, ...] = ()  # of its classes; empty for letters


Keep = Callable[[Probe, Outcome, dict[str, Any]], None]


def evaluate(
    sources: Sequence[Features],
    probes: Sequence[Probe],
    *,
    seed: int = 0,
    report: Report = print,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Every probe over every source. The first source is the student: the others are compared with it.

    ``keep`` is given each probe with the student's outcome and row of the results; utterances are then pooled as heads
    pool them, by one mean over all frames. Returns the results as JSON-ready data. Raises RdError for data without
    labels or without a split.
    """
    rows = []
    for probe in probes:
        probed = probe_sources(probe, sources, seed=seed, report=report, parts=PARTS if keep is None else 1)
        row = {**probed.facts, "results": [_row(one, probed.outcomes[0], probed.groups) for one in probed.outcomes]}
        rows.append(row)
        if keep is not None:
            keep(probe, probed.outcomes[0], row)
    return {
        "note": "probes on the data named here; not SUPERB",
        "seed": seed,
        "sources": {source.name: {"parameters": source.parameters} for source in sources},
        "probes": rows,
    }


@dataclass(frozen=True)
class ProbeOutcomes:
    """One probe of several sources on the same split: what it was, and the outcome of each."""

    facts: dict[str, Any]  # probe, data, fingerprint, measure, split, sizes
    outcomes: list[Outcome]
    groups: list[str] | None  # speaker of each test item, where resampling goes by speaker


def probe_sources(
    probe: Probe, sources: Iterable[Features], *, seed: int = 0, report: Report = print, parts: int = PARTS
) -> ProbeOutcomes:
    """The probe over every source; ``parts``: means over time that stand for an utterance, side by side.

    Raises RdError for data without labels or without a split.
    """
    data = labelled_data(probe, seed=seed, report=report)
    outcomes = []
    for source in sources:
        report(f"{probe.name}: {source.name} ({len(data.train)} train, {len(data.test)} test)")
        outcomes.append(outcome_of(probe, source, data, seed=seed, parts=parts))
    facts = data.facts if probe.kind == "ctc" else {**data.facts, "pooled_parts": parts}
    return ProbeOutcomes(facts, outcomes, data.groups)


@dataclass(frozen=True)
class LabelledData:
    """Utterances with their labels and a split, as a probe or a head is trained and judged on them."""

    utterances: list[Utterance]
    labels: list[str]
    train: list[int]
    test: list[int]
    facts: dict[str, Any]  # probe, data, fingerprint, measure, split, sizes
    groups: list[str] | None  # speaker of each test item, where resampling goes by speaker


def labelled_data(probe: Probe, *, seed: int = 0, report: Report = print) -> LabelledData:
    """The data that the probe takes. Raises RdError for data without labels or without a split."""
    scan = find_utterances(probe.data, bad_limit=BAD_LIMIT)
    scan = dataclasses.replace(scan, utterances=tuple(u for u in scan.utterances if _has_label(probe, u)))
    scan = readable(scan, bad_limit=BAD_LIMIT)
    for skipped in scan.skipped:
        report(f"{probe.name}: left out {skipped.path}: {skipped.reason}")
    kept = list(scan.utterances)
    labels = [u.speaker if probe.kind == "speaker" else u.label for u in kept]
    if len(set(labels)) < 2:
        raise RdError(
            f"{probe.data}: {len(set(labels))} different labels for the probe {probe.kind!r}",
            hint="the manifest needs a column text_or_label, label or text (and speaker for the probe 'speaker')",
        )
    train, test, how = _split(probe, kept, labels, seed=seed)
    if not train or not test:
        raise RdError(
            f"{probe.data}: of {len(kept)} utterances {len(train)} are to train on and {len(test)} to test",
            hint="the probe needs both: more utterances, or a column 'split' with train and test",
        )
    speakers = [kept[i].speaker for i in test]
    grouped = speakers if probe.kind != "speaker" and not set(speakers) & set(UNKNOWN) else None
    facts = {
        "probe": probe.kind,
        "data": probe.name,
        "fingerprint": fingerprint(scan),
        "measure": MEASURES[probe.kind],
        "split": how,
        "train": len(train),
        "test": len(test),
        "classes": len(set(labels)) if probe.kind != "ctc" else None,
    }
    return LabelledData(kept, labels, train, test, facts, grouped)


def thinned(data: LabelledData, *, train_share: float = 1.0, test_share: float = 1.0, seed: int = 0) -> LabelledData:
    """A share of the items to train on and to test with, at least one of every label; ``facts`` say how many are left.

    Which items they are is drawn by the seed.
    """
    generator = np.random.default_rng(seed)
    by_label = data.facts["classes"] is not None

    def drawn(items: list[int], share: float) -> list[int]:
        groups: dict[str, list[int]] = {}
        for item in items:
            groups.setdefault(data.labels[item] if by_label else "", []).append(item)
        kept = []
        for _, mine in sorted(groups.items()):
            kept += generator.permutation(mine)[: max(1, round(share * len(mine)))].tolist()
        return sorted(kept)

    train = drawn(data.train, train_share) if train_share < 1 else data.train
    test = drawn(data.test, test_share) if test_share < 1 else data.test
    place = {old: new for new, old in enumerate(sorted({*train, *test}))}
    test_speakers = dict(zip(data.test, data.groups, strict=True)) if data.groups is not None else None
    return LabelledData(
        [data.utterances[old] for old in place],
        [data.labels[old] for old in place],
        [place[old] for old in train],
        [place[old] for old in test],
        {**data.facts, "train": len(train), "test": len(test)},
        None if test_speakers is None else [test_speakers[old] for old in test],
    )


def _has_label(probe: Probe, utterance: Utterance) -> bool:
    if probe.kind == "speaker":
        return utterance.speaker not in UNKNOWN
    return bool(letters_of(utterance.label)) if probe.kind == "ctc" else bool(utterance.label)


def _split(
    probe: Probe, utterances: list[Utterance], labels: list[str], *, seed: int
) -> tuple[list[int], list[int], str]:
    stated = given(utterances, disjoint=probe.kind != "speaker")
    if probe.kind == "speaker":
        how = "other utterances of the same speakers"
        if stated is None:
            return *by_utterance(labels, seed=seed), f"drawn, {how}"
        if not {labels[i] for i in stated[0]} & {labels[i] for i in stated[1]}:  # nobody could be recognised
            return *by_utterance(labels, seed=seed), f"drawn, {how}; the manifest's shares no speakers"
        return *stated, f"the manifest's, {how}"
    known = {u.speaker for u in utterances} - set(UNKNOWN)
    disjoint = "speaker-disjoint" if known else "speakers unknown"
    if stated is not None:
        return *stated, f"the manifest's, {disjoint}"
    return *by_speaker(utterances, seed=seed), f"drawn, {disjoint}"


def outcome_of(probe: Probe, source: Features, data: LabelledData, *, seed: int = 0, parts: int = PARTS) -> Outcome:
    """The probe over one source: trained and judged on ``data``."""
    utterances, labels, train, test = data.utterances, data.labels, data.train, data.test
    one_by_one = with_progress(utterances, f"{probe.kind}, {source.name}", name=lambda u: u.path.name)
    if probe.kind == "ctc":
        frames = [source(read_utterance(u)).to(torch.float16) for u in one_by_one]
        spelled = ctc_probe(frames, labels, train, test, seed=seed)
        return Outcome(source.name, spelled.edits, spelled.letters, spelled.layer_weights, spelled.model)
    items: Tensor = torch.stack([pooled(source(read_utterance(u)), parts) for u in one_by_one])
    speakers = [u.speaker for u in utterances] if probe.kind == "label" else None
    result = linear_probe(items, labels, train, test, speakers=speakers, seed=seed)
    ones, names = [1.0] * len(result.right), tuple(result.labels)
    return Outcome(source.name, result.right, ones, result.layer_weights, result.model, names)


def _row(outcome: Outcome, student: Outcome, groups: list[str] | None) -> dict[str, Any]:
    value = ratio_interval(outcome.numerators, outcome.denominators, groups=groups)
    row: dict[str, Any] = {
        "source": outcome.source,
        **dataclasses.asdict(value),
        "layer_weights": outcome.layer_weights,
    }
    if outcome is not student:
        change = difference_interval(student.numerators, outcome.numerators, outcome.denominators, groups=groups)
        row["student_minus_this"] = dataclasses.asdict(change)
    return row


def table(results: dict[str, Any]) -> str:
    """The results as lines of text, one block per probe."""
    lines = [results["note"]]
    for probe in results["probes"]:
        measure = f"{probe['measure']}, {BETTER[probe['measure']]} is better"
        lines += ["", f"{probe['data']}  ({measure}, {probe['test']} test items, split: {probe['split']})"]
        for row in probe["results"]:
            change = row.get("student_minus_this")
            against = f"   student - this: {_text(Interval(**change), sign='+')}" if change else ""
            value = Interval(row["value"], row["low"], row["high"])
            lines.append(f"  {row['source']:<12} {_text(value)}{against}")
    return "\n".join(lines)


def _text(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
