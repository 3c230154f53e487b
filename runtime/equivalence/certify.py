"""The equivalence certificate: the gate's figures on this machine, written into the bundle."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from reuse_distill.runtime.bundle_format.bundle import CERTIFICATE, MANIFEST, file_sha256
from reuse_distill.runtime.cli.writers import whole_file
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.equivalence.checks import checks_of
from reuse_distill.runtime.equivalence.gate import REPEAT_MAX_ABS, Gate, Tally
from reuse_distill.runtime.equivalence.parity import within
from reuse_distill.runtime.equivalence.selftest import output_views, read_expected
from reuse_distill.runtime.errors import RdError

SCHEMA = 1


NAME_WIDTH = 32  # of a check with the name of its head before it


@dataclass(frozen=True)
class Check:
    """One line of the certificate. What a check could not measure is None.

    ``repeat_max_abs`` is the streaming error: the same artifact streamed otherwise, against one push of everything.
    ``max_abs`` and ``mean_cosine`` are the error of the artifact: against its source in float32, precision included.
    """

    name: str
    passed: bool
    cases: int
    frames: int
    max_abs: float | None
    mean_cosine: float | None
    repeat_max_abs: float | None
    problem: str

    def __str__(self) -> str:
        figures = " ".join(
            f"{'-' if value is None else format(value, form):>{width}}"
            for value, form, width in (
                (self.repeat_max_abs, ".2e", 15),
                (self.max_abs, ".2e", 17),
                (self.mean_cosine, ".6f", 11),
            )
        )
        verdict = "pass" if self.passed else f"FAILED {self.problem}"
        return f"{self.name:<{NAME_WIDTH}} {self.cases:>5} {figures}  {verdict}"


@dataclass(frozen=True)
class Certificate:
    """What ``certify`` found; ``certificate.json`` holds the same."""

    passed: bool
    bound: dict[str, float]  # of the features, or of the first head where there are none
    repeat_bound: float
    checks: tuple[Check, ...]
    provider: str
    placement: dict[str, int] | None
    threads: int
    host: dict[str, Any]
    versions: dict[str, str]
    date: str
    manifest_sha256: str
    seed: int
    head_bounds: dict[str, dict[str, float]] = field(default_factory=dict)  # a mean cosine of decisions: agreement
    precision: str = ""
    schema_version: int = SCHEMA

    @property
    def streaming_error(self) -> float | None:
        """Largest difference that pushes, batches, resets and snapshots made; None where none was measured."""
        return max((c.repeat_max_abs for c in self.checks if c.repeat_max_abs is not None), default=None)

    @property
    def source_error(self) -> float | None:
        """Largest difference to the source in float32: what export and precision cost, streamed or not.

        Of what ``bound`` is for: features, or the outputs of heads where there are no features.
        """
        heads = tuple(f"{name}: " for name in self.head_bounds)
        features = [c for c in self.checks if not c.name.startswith(heads)] if heads else []
        return max((c.max_abs for c in features or self.checks if c.max_abs is not None), default=None)

    def summary(self) -> list[str]:
        """The two errors, each with its limit, and the verdict."""
        limits = ", ".join(f"{name} {value:g}" for name, value in self.bound.items())
        streaming, source = (
            "unmeasured" if error is None else "none" if error == 0 else f"{error:.2e}"
            for error in (self.streaming_error, self.source_error)
        )
        verdict = "certified" if self.passed else "NOT certified"
        return [
            f"streaming error {streaming} (largest difference to one push of everything; limit {self.repeat_bound:g})",
            f"error of {self.precision or 'the artifact'} {source} (largest difference to its source; limit {limits})",
            f"{verdict} on {self.provider}, {self.threads} thread(s)",
        ]


HEADER = f"{'check':<{NAME_WIDTH}} {'cases':>5} {'streaming error':>15} {'to source max abs':>17} {'mean cosine':>11}"


def certify(encoder: Encoder, *, seed: int = 0, progress: Callable[[Check], None] | None = None) -> Certificate:
    """Run every check of the gate. Raises RdError for a bundle that does not stream or has no reference."""
    manifest = encoder.manifest
    if manifest.kind != "streaming":
        raise RdError(
            f"{encoder.bundle.path}: the equivalence gate is for streaming bundles, this one is {manifest.kind}",
            hint="its selftest compares it with its source: Encoder.selftest()",
        )
    expected, views = read_expected(encoder.bundle), output_views(manifest)
    checks = []
    for view in views:
        gate = Gate(encoder, expected, view, seed=seed)
        of = "" if view.head is None else f"{view.name}: "
        for name, run in checks_of(encoder).items():
            tally = Tally(compared=view.compared, pooled=view.decides)
            run(gate, tally)
            checks.append(_judge(of + name, tally, view.bound))
            if progress is not None:
                progress(checks[-1])
    placement = encoder.backend.placement
    return Certificate(
        passed=all(check.passed for check in checks),
        bound=views[0].bound,
        head_bounds={view.name: view.bound for view in views if view.head is not None},
        repeat_bound=REPEAT_MAX_ABS,
        checks=tuple(checks),
        provider=encoder.provider,
        placement=None if placement is None else dict(placement),
        threads=encoder.threads,
        host=host(),
        versions={"python": platform.python_version(), **encoder.backend.versions},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        manifest_sha256=file_sha256(encoder.bundle.path / MANIFEST),
        seed=seed,
        precision=manifest.precision,
    )


def write_certificate(certificate: Certificate, path: Path) -> Path:
    """Write it to the file ``path``, or as ``certificate.json`` into the folder ``path``, whole or not at all."""
    file_path = path / CERTIFICATE if path.is_dir() else path
    errors = {"streaming_error": certificate.streaming_error, "source_error": certificate.source_error}
    with whole_file(file_path) as file:
        file.write((json.dumps({**asdict(certificate), **errors}, indent=1, allow_nan=False) + "\n").encode())
    return file_path


def host() -> dict[str, Any]:
    """This machine, without its name."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def _judge(name: str, tally: Tally, bound: dict[str, float]) -> Check:
    """A check passes when it measured something, all of that is within its bound, and nothing else is wrong."""
    measured = tally.max_abs is not None or tally.repeat_max_abs is not None
    near = tally.max_abs is None or tally.mean_cosine is None or within(tally.max_abs, tally.mean_cosine, bound)
    same = tally.repeat_max_abs is None or tally.repeat_max_abs <= REPEAT_MAX_ABS
    problem = tally.problem or ("" if measured else "nothing to compare with")
    return Check(name, near and same and not problem, problem=problem, **_figures(tally))


def _figures(tally: Tally) -> dict[str, Any]:
    names = ("cases", "frames", "max_abs", "mean_cosine", "repeat_max_abs")
    return {name: getattr(tally, name) for name in names}
