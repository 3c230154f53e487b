"""``rd-distill head``: one function per kind, from data to a trained head and what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import Scan, Utterance, find_utterances, fingerprint
from reuse_distill.distill.evaluation import splits
from reuse_distill.distill.evaluation.bootstrap import ratio_interval
from reuse_distill.distill.evaluation.evaluate import BAD_LIMIT, LabelledData, Probe, labelled_data
from reuse_distill.distill.evaluation.linear_probes import ctc_probe, linear_probe
from reuse_distill.distill.tasks.fit_spot import SpotSettings, fit_spot, spot_output, thresholds_for
from reuse_distill.distill.tasks.fit_without_gradients import Ridge, assign, k_means
from reuse_distill.distill.tasks.made_head import FrozenStudent, head_of, letters_output, linear_head, provenance_of
from reuse_distill.distill.tasks.spot_data import COPIES, Heard, judge_spot, keyword_recordings, other_speech
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.runtime.tasks.spotting import Spotter
from reuse_distill.student.tasks import TaskHead, linear_of_units
from torch import Tensor

Report = Callable[[str], None]
MOST_FRAMES = 400_000  # that k-means looks at


@dataclass(frozen=True)
class HeadRequest:
    """What the command line asks for."""

    kind: str
    data: Path
    name: str
    seed: int = 0
    label: str = "label"  # classify: the manifest's label, or the speaker
    units: int = 100
    negatives: tuple[Path, ...] = ()  # spot: other speech
    copies: int = COPIES  # spot: varied copies of each keyword recording
    spot: SpotSettings = field(default_factory=SpotSettings)
    teacher: Path | None = None  # projection: whose features
    teacher_layer: int = -1
    window_s: float | None = None  # classify
    licence: str = ""


@dataclass(frozen=True)
class Trained:
    """A head, and a line that says how good it is."""

    head: TaskHead
    summary: str


def train_head(request: HeadRequest, student: FrozenStudent, *, report: Report = print) -> Trained:
    """Train and judge the head that is requested. Raises RdError for data that do not serve."""
    kinds: dict[str, Callable[[HeadRequest, FrozenStudent, Report], Trained]] = {
        "classify": _classify,
        "ctc": _ctc,
        "units": _units,
        "projection": _projection,
        "spot": _spot,
    }
    return kinds[request.kind](request, student, report)


def _classify(request: HeadRequest, student: FrozenStudent, report: Report) -> Trained:
    data = labelled_data(Probe(request.label, request.data), seed=request.seed, report=report)
    report(f"features of {len(data.utterances)} utterances")
    items = torch.stack([student(read_utterance(u)).mean(1) for u in data.utterances])  # (items, N, W)
    speakers = [u.speaker for u in data.utterances] if request.label == "label" else None
    result = linear_probe(items, data.labels, data.train, data.test, speakers=speakers, seed=request.seed)
    accuracy = ratio_interval(result.right, [1.0] * len(result.right), groups=data.groups)
    output = TaskOutput(request.name, "classify", len(result.labels), tuple(result.labels), window_s=request.window_s)
    metrics = {**data.facts, "accuracy": asdict(accuracy), "decay": result.decay}
    metrics["layer_weights"] = result.layer_weights
    head = linear_head(student, output, result.model, metrics, _provenance(request))
    return Trained(head, f"accuracy {_text(asdict(accuracy))} on {len(data.test)} test items, {data.facts['split']}")


def _ctc(request: HeadRequest, student: FrozenStudent, report: Report) -> Trained:
    data: LabelledData = labelled_data(Probe("ctc", request.data), seed=request.seed, report=report)
    report(f"features of {len(data.utterances)} utterances")
    frames = [student(read_utterance(u)).to(torch.float16) for u in data.utterances]
    result = ctc_probe(frames, data.labels, data.train, data.test, seed=request.seed)
    errors = ratio_interval(result.edits, result.letters, groups=data.groups)
    output = letters_output(request.name)
    metrics = {**data.facts, "letter_error_rate": asdict(errors), "layer_weights": result.layer_weights}
    head = linear_head(student, output, result.model, metrics, _provenance(request))
    return Trained(head, f"letter error rate {_text(asdict(errors))} on {len(data.test)} test items")


def _units(request: HeadRequest, student: FrozenStudent, report: Report) -> Trained:
    scan = find_utterances(request.data, bad_limit=BAD_LIMIT)
    train, test, how = _any_split(scan, request.seed)
    report(f"features of {len(train)} utterances to train on")
    frames = _some_frames(student, train, request.seed)
    mean, scale = frames.mean(0), 1 / (frames.std(0) + 1e-3 * frames.std() + 1e-8)
    clusters = k_means((frames - mean) * scale, request.units, seed=request.seed)
    report(f"k-means: {len(clusters.distortions)} steps, {clusters.moved} centroids without frames moved")
    metrics: dict[str, Any] = {
        "data": request.data.parent.name if request.data.suffix else request.data.name,
        "fingerprint": fingerprint(scan),
        "split": how,
        "frames": len(frames),
        "explained_variance_train": round(1 - clusters.distortion / frames.shape[1], 4),
    }
    if test:
        metrics |= _judge_units(student, test, clusters.centroids, mean, scale)
    weight, bias = linear_of_units(clusters.centroids, mean, scale)
    output = TaskOutput(request.name, "units", request.units)
    head = head_of(student, output, {"outer.weight": weight, "outer.bias": bias}, metrics, _provenance(request))
    explained = metrics.get("explained_variance")
    variance = "unmeasured: no test recordings" if explained is None else _text(explained)
    return Trained(head, f"{request.units} units, explained variance {variance}")


def _judge_units(
    student: FrozenStudent, test: Sequence[Utterance], centroids: Tensor, mean: Tensor, scale: Tensor
) -> dict[str, Any]:
    """Explained variance with its interval over utterances, units in use, mean run."""
    left, total, counts, runs, frames = [], [], torch.zeros(len(centroids)), 0, 0
    for utterance in test:
        normed = (_side_by_side(student(read_utterance(utterance))) - mean) * scale
        nearest, distances = assign(normed, centroids)
        left.append(float(distances.sum()))
        total.append(float(normed.square().sum()))
        counts += torch.bincount(nearest, minlength=len(centroids))
        runs += int((nearest.diff() != 0).sum()) + 1
        frames += len(nearest)
    share = ratio_interval(left, total)
    used = counts[counts > 0] / counts.sum()
    return {
        "explained_variance": {"value": 1 - share.value, "low": 1 - share.high, "high": 1 - share.low},
        "test": len(test),
        "units_used": int((counts > 0).sum()),
        "perplexity": round(float((-(used * used.log()).sum()).exp()), 1),
        "mean_run_frames": round(frames / runs, 2),
    }


def _projection(request: HeadRequest, student: FrozenStudent, report: Report) -> Trained:
    if request.teacher is None:
        raise RdError("a projection predicts a teacher's features", hint="add --teacher DIR")
    teacher, scan = open_teacher(request.teacher), find_utterances(request.data, bad_limit=BAD_LIMIT)
    train, test, how = _any_split(scan, request.seed)

    def targets(samples: np.ndarray) -> Tensor:
        with torch.no_grad():
            hidden = teacher.hidden_states(torch.from_numpy(samples)[None])  # (layers, 1, F, C)
        return hidden[request.teacher_layer, 0].float()

    sums = Ridge()
    report(f"features of student and teacher for {len(train)} utterances")
    for utterance in train:
        samples = read_utterance(utterance)
        x, y = _side_by_side(student(samples)), targets(samples)
        count = min(len(x), len(y))
        sums.add(x[:count], y[:count])
    weight, bias = sums.solve()
    average = (sums.y_sum / sums.count).float()
    left, total = [], []
    for utterance in test:
        samples = read_utterance(utterance)
        x, y = _side_by_side(student(samples)), targets(samples)
        count = min(len(x), len(y))
        left.append(float((x[:count] @ weight.T + bias - y[:count]).square().sum()))
        total.append(float((y[:count] - average).square().sum()))
    share = ratio_interval(left, total)
    explained = {"value": 1 - share.value, "low": 1 - share.high, "high": 1 - share.low}
    metrics = {"split": how, "test": len(test), "explained_variance": explained, "teacher": request.teacher.name}
    metrics |= {"teacher_layer": request.teacher_layer, "fingerprint": fingerprint(scan)}
    output = TaskOutput(request.name, "projection", weight.shape[0])
    head = head_of(student, output, {"outer.weight": weight, "outer.bias": bias}, metrics, _provenance(request))
    return Trained(head, f"explained variance of the teacher's frames {_text(explained)}")


def _spot(request: HeadRequest, student: FrozenStudent, report: Report) -> Trained:
    if not request.negatives:
        raise RdError("a spotter needs other speech, which it must not detect", hint="add --negatives AUDIO")
    data = labelled_data(Probe("label", request.data), seed=request.seed, report=report)
    keywords = sorted({data.labels[i] for i in data.train})
    lead, held_out, sources = other_speech(request.negatives, seed=request.seed)
    if not lead or not held_out:
        raise RdError(f"{len(lead)} recordings of other speech to train on, {len(held_out)} to measure with: too few")

    def frames_of(samples: np.ndarray) -> Tensor:
        return _side_by_side(student(samples)).to(torch.float16)

    report(f"features of {len(data.train)} keyword recordings, {request.copies} varied copies of each")
    spoken = keyword_recordings(
        [data.utterances[i] for i in data.train],
        [keywords.index(data.labels[i]) for i in data.train],
        lead,
        copies=request.copies,
        seed=request.seed,
    )
    heard = [(frames_of(one.samples), one.label, one.word) for one in spoken]
    report(f"features of {len(lead)} recordings of other speech")
    others = [frames_of(read_utterance(u)) for u in lead]
    network = fit_spot(
        [frames for frames, _, _ in heard],
        [label for _, label, _ in heard],
        [word for _, _, word in heard],
        others,
        keywords=len(keywords),
        settings=request.spot,
        seed=request.seed,
        report=report,
    )
    untuned = Spotter(spot_output(request.name, keywords, request.spot, [1.0] * len(keywords)))
    thresholds = thresholds_for(
        [untuned.scores(network.probabilities(frames)) for frames in others], keywords=len(keywords)
    )
    output = spot_output(request.name, keywords, request.spot, thresholds)
    report(f"measuring on {len(data.test)} keyword recordings and {len(held_out)} recordings of other speech")
    test = keyword_recordings(
        [data.utterances[i] for i in data.test],
        [keywords.index(data.labels[i]) if data.labels[i] in keywords else -1 for i in data.test],
        [],
        copies=0,
        seed=request.seed,
    )
    answers = [Heard(network.probabilities(frames_of(one.samples)), one.label, one.word[1]) for one in test]
    other = [Heard(network.probabilities(frames_of(read_utterance(u)))) for u in held_out]
    figures = judge_spot(output, answers, other)
    metrics = {**data.facts, "measure": "false rejection rate", **figures, "other_speech": sources}
    head = head_of(
        student, output, network.folded(), metrics, _provenance(request), inner_width=request.spot.inner_width
    )
    alarms = figures["false_alarms_per_hour"]
    rate = alarms if isinstance(alarms, str) else _text(alarms)
    missed = _text(figures["false_rejection_rate"])
    return Trained(head, f"missed {missed} of {len(answers)}; false alarms per hour {rate}")


def _provenance(request: HeadRequest) -> dict[str, Any]:
    return provenance_of(f"rd-distill head {request.kind}", seed=request.seed, licence=request.licence)


def _any_split(scan: Scan, seed: int) -> tuple[list[Utterance], list[Utterance], str]:
    """Utterances to train on and to test: the manifest's split, else by speaker, else one in four."""
    items = scan.utterances
    stated = splits.given(items)
    if stated is not None:
        return [items[i] for i in stated[0]], [items[i] for i in stated[1]], "the manifest's"
    if len({u.speaker for u in items} - set(splits.UNKNOWN)) == 1:
        return list(items), [], "none: one speaker"
    train, test = splits.by_speaker(items, seed=seed)
    return [items[i] for i in train], [items[i] for i in test], "drawn, speaker-disjoint where speakers are known"


def _some_frames(student: FrozenStudent, utterances: Sequence[Utterance], seed: int) -> Tensor:
    """Frames (n, N W) of all utterances, drawn so that there are at most MOST_FRAMES."""
    generator = torch.Generator().manual_seed(seed)
    seconds = sum(u.seconds for u in utterances)
    share = min(1.0, MOST_FRAMES / max(50 * seconds, 1.0))
    parts = []
    for utterance in utterances:
        frames = _side_by_side(student(read_utterance(utterance)))
        parts.append(frames[torch.rand(len(frames), generator=generator) < share] if share < 1 else frames)
    return torch.cat(parts)


def _side_by_side(features: Tensor) -> Tensor:
    """(N, F, W) -> (F, N W)."""
    return features.transpose(0, 1).flatten(1)


def _text(interval: dict[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
