"""What the commands wrote, read back: manifests, certificates, raw latencies, losses; and the one table at the end."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.measurement import UTTERANCES
from reuse_distill.report.plain_text import text_table
from reuse_distill.report.quantities import quantity
from reuse_distill.runtime.bundle_format.bundle import CERTIFICATE, read_bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest

from demo.demo_steps import ARTIFACTS, Artifact

Metrics = dict[str, float | None]
HEAD = ("artifact", "size", "parity with torch", "attention", "measured", "RTF", "p90", "budget", "certificate")


@dataclass(frozen=True)
class Result:
    """One bundle with everything that was found out about it."""

    artifact: Artifact
    manifest: Manifest
    latency: dict[str, Any]  # the one outcome of rd-latency's JSON
    certificate: dict[str, Any] | None  # streaming bundles

    @property
    def metrics(self) -> Metrics:
        measurement = self.latency.get("measurement")
        return measurement["metrics"] if measurement else {}

    @property
    def pace(self) -> str:
        """What was timed: ``paced`` chunks as a microphone gives them, or whole utterances of 5 s."""
        measurement = self.latency.get("measurement")
        mode = str(measurement["request"]["mode"]) if measurement else "unmeasured"
        return "utterances of 5 s" if mode == UTTERANCES else mode

    @property
    def verdict(self) -> str:
        return str(self.latency["verdict"])

    @property
    def size_bytes(self) -> int:
        return self.manifest.files[self.manifest.artifact].size_bytes

    @property
    def reuse(self) -> str:
        """As in `3 of 6 layers reuse`."""
        proof = self.manifest.graph_proof
        return "not proven" if proof is None else f"{len(proof.reused)} of {proof.layers} layers reuse"

    @property
    def parity(self) -> str:
        """fp32: largest difference. int8: mean frame cosine."""
        measured = self.manifest.parity["measured"]
        if self.artifact.precision == "int8":
            return f"cosine {measured['mean_cosine']:.4f}"
        return f"max abs {measured['max_abs']:.1e}"

    def samples_ms(self) -> np.ndarray:
        """Raw latencies of all chunks."""
        measurement = self.latency.get("measurement")
        rows = [one["latency_ms"] for one in measurement["samples"]] if measurement else []
        return np.concatenate([np.asarray(row, np.float64) for row in rows]) if rows else np.zeros(0)


@dataclass(frozen=True)
class Losses:
    """The loss of one distillation, step by step."""

    student: str
    steps: tuple[float, ...]
    loss: tuple[float, ...]
    by_layer: tuple[tuple[float, ...], ...]  # the term of each layer, in order

    @property
    def first_tenth(self) -> float:
        return float(np.mean(self.loss[: max(1, len(self.loss) // 10)]))

    @property
    def last_tenth(self) -> float:
        return float(np.mean(self.loss[-max(1, len(self.loss) // 10) :]))

    def smooth(self) -> tuple[float, ...]:
        """Mean over the last tenth of the steps before each, at least five."""
        width = max(5, len(self.loss) // 10)
        return tuple(float(np.mean(self.loss[max(0, i - width + 1) : i + 1])) for i in range(len(self.loss)))


def read_results(out: Path) -> list[Result]:
    """Every bundle of the demo, verified as the runtime verifies it."""
    return [_result(out, artifact) for artifact in ARTIFACTS]


def _result(out: Path, artifact: Artifact) -> Result:
    folder = out / artifact.name
    certificate = folder / CERTIFICATE
    return Result(
        artifact,
        read_bundle(folder).manifest,
        json.loads((out / f"{artifact.name}.latency.json").read_text(encoding="utf-8"))["outcomes"][0],
        json.loads(certificate.read_text(encoding="utf-8")) if certificate.is_file() else None,
    )


def read_losses(out: Path, student: str) -> Losses:
    """The rows of the run's metrics.csv."""
    with (out / student / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    layers = sorted((name for name in rows[0] if name.startswith("layer_")), key=lambda name: int(name[6:]))
    return Losses(
        student,
        tuple(float(row["step"]) for row in rows),
        tuple(float(row["loss"]) for row in rows),
        tuple(tuple(float(row[name]) for row in rows) for name in layers),
    )


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One row per bundle; what was not measured says so."""
    return [
        (
            f"{one.artifact.mode} {one.artifact.precision}",
            quantity(one.size_bytes, "bytes"),
            one.parity,
            one.reuse,
            one.pace,
            quantity(one.metrics.get("rtf"), "ratio"),
            quantity(one.metrics.get("p90"), "time"),
            one.verdict,
            certified(one),
        )
        for one in results
    ]


def certified(result: Result) -> str:
    """Whether streaming was certified to equal the whole utterance."""
    if result.artifact.mode != "streaming":
        return "not streaming"
    if result.certificate is None:
        return "unmeasured"
    return "passed" if result.certificate["passed"] else "FAILED"


def print_table(results: Sequence[Result]) -> None:
    """Aligned text; never cut."""
    print(f"\n{text_table([HEAD, *rows(results)], rule=True)}")
