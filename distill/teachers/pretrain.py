"""Train the small teacher the way HuBERT was: predict the cluster of masked frames (arXiv 2106.07447).

First the clusters are k-means of cepstra, then of a middle layer of the model itself, which goes on from where it is.
Where recordings have transcripts, a linear layer may learn their letters beside it (CTC): far fewer hours are needed
until the features know phones. An hour of speech and half an hour of one CPU core give a toy beside the released
models, but one that knows something about speech.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.data.batches import Batch, BatchReader, Position
from reuse_distill.distill.data.plan import MASK
from reuse_distill.distill.data.utterances import Scan, find_utterances, fingerprint
from reuse_distill.distill.evaluation.ctc import ALPHABET, encode, letters_of
from reuse_distill.distill.masks import SpanMask, draw_mask
from reuse_distill.distill.recipe import DataSettings
from reuse_distill.distill.teachers.source import open_teacher
from reuse_distill.distill.teachers.targets import Frames, assigned, cepstra, k_means, layer_of
from reuse_distill.distill.teachers.tiny import NOTE, WIDTH, check_free, hubert_config, write_teacher
from reuse_distill.distill.teachers.vendor import transformers
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import frames_for_lengths
from torch import Tensor


@dataclass(frozen=True)
class PretrainSettings:
    """How long and on what. ``unmasked`` weighs the frames that were not masked, ``letters`` the CTC loss (0: none)."""

    steps: int = 200  # of each round
    clusters: tuple[int, ...] = (100, 200)  # one round each: of cepstra, then of the model's own layer
    layer: int = 4  # whose frames the later rounds cluster
    rate: float = 1.5e-3
    warmup: float = 0.08
    unmasked: float = 0.5
    letters: float = 0.0
    mask: SpanMask = field(default_factory=lambda: SpanMask(probability=0.4, selection="static"))
    letter_mask: SpanMask = field(default_factory=lambda: SpanMask(probability=0.4, selection="static"))
    data: DataSettings = field(default_factory=lambda: DataSettings(8, 24.0, 3.0, 4, noise_snr_db=15.0))
    seed: int = 0
    device: str = "cpu"
    half: bool = False  # bfloat16 autocast

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.clusters or min(self.clusters) < 2:
            raise RdError(f"pretraining: {self.steps} steps, {list(self.clusters)} clusters", hint="1 step, 2 clusters")


def pretrain_teacher(folder: Path, source: Path, settings: PretrainSettings, *, init: Path | None = None) -> Path:
    """Write a transformers folder of a small HuBERT trained on ``source``, in half precision.

    ``init``: such a folder to go on from, with clusters of its own layer from the first round on.

    Raises RdError as ``find_utterances``, and where letters are wanted and nothing is transcribed.
    """
    scan = find_utterances(source, bad_limit=settings.data.bad_limit)
    check_free(folder)  # not to find out after half an hour
    reader = BatchReader(scan.utterances, settings.data, seed=settings.seed, bad_before=scan.bad)
    lettered = _lettered(scan, settings)
    rounds = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = transformers().HubertModel(hubert_config()) if init is None else _model_of(init)
        model = model.to(settings.device).train()
        spelling = torch.nn.Linear(WIDTH, len(ALPHABET) + 1).to(settings.device)
        for number, clusters in enumerate(settings.clusters, start=1):
            frames = cepstra if number == 1 and init is None else _own_layer(model, settings)
            centres = k_means(collect(reader, frames), clusters, seed=settings.seed)
            trained = Round(model, spelling, frames, centres, settings, number)
            rounds.append({"clusters": clusters, "steps": settings.steps, **trained.train(reader, lettered)})
    note = _note(settings, rounds, scan, lettered)
    if init is not None:
        note["before"] = json.loads((init / NOTE).read_text(encoding="utf-8"))
    return write_teacher(folder, model.eval().cpu().half(), note)


def collect(reader: BatchReader, frames: Frames, *, wanted: int = 30_000) -> Tensor:
    """At least ``wanted`` frames of the data (frames, D), or what four epochs hold."""
    collected: list[Tensor] = []
    stream = reader.batches(Position())
    while sum(map(len, collected)) < wanted and len(collected) < 4 * len(reader.utterances):
        collected += frames(next(stream))
    stream.close()
    return torch.cat(collected)


@dataclass
class Round:
    """One set of clusters and the steps that learn it. The model and ``spelling`` go on from round to round."""

    model: Any
    spelling: torch.nn.Linear
    frames: Frames
    centres: Tensor
    settings: PretrainSettings
    number: int

    def __post_init__(self) -> None:
        self.head = torch.nn.Linear(WIDTH, len(self.centres)).to(self.settings.device)

    def train(
        self,
        reader: BatchReader,
        lettered: Lettered | None,
        report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> dict[str, float]:
        """Returns means over the last tenth of the steps. With ``lettered`` every second batch is transcribed."""
        steps = self.settings.steps
        parameters = [p for part in (self.model, self.spelling, self.head) for p in part.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=self.settings.rate, betas=(0.9, 0.98))
        history: list[dict[str, float]] = []
        shown = 0.0
        for step, batch in zip(range(steps), self._batches(reader, lettered), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = self.settings.rate * schedule(step, steps, self.settings.warmup)
            loss, seen = self._loss(batch, lettered)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            history.append(seen)
            if time.monotonic() - shown > 10 or step + 1 == steps:
                shown = time.monotonic()
                text = "  ".join(f"{name} {value:.3f}" for name, value in _means(history[-40:]).items())
                report(f"pretrain round {self.number}, {step + 1}/{steps}  {text}")
        return _means(history[-max(1, steps // 10) :])

    def _batches(self, reader: BatchReader, lettered: Lettered | None) -> Iterator[Batch]:
        start = Position(epoch=1000 * self.number)  # other crops and orders than the rounds before
        streams: list[Generator[Batch, None, None]] = [reader.batches(start)]
        streams += [lettered.reader.batches(start)] if lettered else []
        while True:
            for stream in streams:
                yield next(stream)

    def _loss(self, batch: Batch, lettered: Lettered | None) -> tuple[Tensor, dict[str, float]]:
        settings, device = self.settings, self.settings.device
        counts = frames_for_lengths(batch.lengths)
        where = [MASK, settings.seed, batch.position.epoch, batch.position.batch]
        spells = lettered is not None and all(name in lettered.texts for name in batch.names)
        spans = settings.letter_mask if spells else settings.mask
        mask = torch.from_numpy(draw_mask(spans, counts.tolist(), int(counts.max()), seed=where)).to(device)
        target = assigned(batch, self.frames, self.centres).to(device)
        samples = torch.arange(batch.wave.shape[1])[None, :] < batch.lengths[:, None]
        with torch.autocast(device, dtype=torch.bfloat16, enabled=settings.half):
            hidden = self.model(
                batch.wave.to(device), attention_mask=samples.to(device), mask_time_indices=mask
            ).last_hidden_state
            logits = self.head(hidden).float()
        hidden_frames, seen_frames = (target >= 0) & mask, (target >= 0) & ~mask
        entropy = torch.nn.functional.cross_entropy
        masked = entropy(logits[hidden_frames], target[hidden_frames])
        loss = masked + settings.unmasked * entropy(logits[seen_frames], target[seen_frames])
        right = logits[hidden_frames].argmax(-1) == target[hidden_frames]
        named = {"masked_loss": float(masked.detach()), "masked_accuracy": float(right.float().mean())}
        if lettered is None or not spells:
            return loss, named
        spelled = self.spelling(hidden.float()).log_softmax(-1).transpose(0, 1)
        ctc = lettered.loss(spelled, counts, batch.names)
        return loss + settings.letters * ctc, {**named, "letter_loss": float(ctc.detach())}


@dataclass(frozen=True)
class Lettered:
    """Transcribed utterances, whole, and the letters of each by its path."""

    reader: BatchReader
    texts: dict[str, str]

    def loss(self, log_probabilities: Tensor, frames: Tensor, names: list[str]) -> Tensor:
        """CTC loss per letter of (F, B, letters + 1)."""
        texts = [self.texts[name] for name in names]
        return torch.nn.functional.ctc_loss(
            log_probabilities,
            torch.cat([encode(text) for text in texts]).to(log_probabilities.device),
            frames,
            torch.tensor([len(text) for text in texts]),
            zero_infinity=True,
        )


def schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, linear decay: the share of the highest rate."""
    warm = max(1, int(warmup * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def _model_of(folder: Path) -> Any:
    """The transformers model of a folder, to be trained further."""
    teacher: Any = open_teacher(folder)
    return teacher.model.requires_grad_(True)


def _lettered(scan: Scan, settings: PretrainSettings) -> Lettered | None:
    if settings.letters == 0:
        return None
    longest = settings.data.batch_seconds
    kept = [u for u in scan.utterances if " " in u.label and letters_of(u.label) and u.seconds < longest]
    if not kept:
        raise RdError("letters are to be learnt, and no recording has a transcript", hint="give a manifest with texts")
    whole = dataclasses.replace(settings.data, crop_seconds=0.0)
    reader = BatchReader(kept, whole, seed=settings.seed, bad_before=scan.bad)
    return Lettered(reader, {str(u.path): letters_of(u.label) for u in kept})


def _own_layer(model: Any, settings: PretrainSettings) -> Frames:
    """Frames of the model as it is now; it will not change with the training that follows."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    return layer_of(frozen, settings.layer, device=settings.device, half=settings.half)


def _means(history: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for row in history for name in row})
    collected = {name: [row[name] for row in history if name in row] for name in names}
    return {name: round(sum(values) / len(values), 4) for name, values in collected.items()}


def _note(
    settings: PretrainSettings, rounds: list[dict[str, float]], scan: Scan, lettered: Lettered | None
) -> dict[str, Any]:
    how = "masked prediction of clusters" + (", and the letters of transcripts (CTC)" if lettered else "")
    return {
        "weights": "trained on little speech, a toy beside released models",
        "objective": how,
        "rounds": rounds,
        "transcribed_utterances": len(lettered.texts) if lettered else 0,
        "seed": settings.seed,
        "data": fingerprint(scan),
    }
