"""A bundle ready to run: whole utterances, streams, and many streams stepped as one batch."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from reuse_distill.runtime.audio.resample import resample
from reuse_distill.runtime.audio.samples import mono, sample_rate_of
from reuse_distill.runtime.bundle_format.bundle import Bundle, read_bundle
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest
from reuse_distill.runtime.bundle_format.stepspec import step_spec
from reuse_distill.runtime.engines.backend import Backend
from reuse_distill.runtime.engines.engine_choice import check_runnable, open_backend
from reuse_distill.runtime.engines.providers import PlacedNode, ReportsNodes
from reuse_distill.runtime.equivalence.selftest import SelfTest, run_selftest
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.memory import check_fits
from reuse_distill.runtime.streaming.frame_rate import RateEngine, rate_of
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.streaming.latency import Latency, algorithmic_latency
from reuse_distill.runtime.streaming.state_pool import open_pool
from reuse_distill.runtime.streaming.steps import Batcher, StepEngine, own_frames
from reuse_distill.runtime.streaming.stream import Engine, Stream, StreamIdentity, time_steps
from reuse_distill.runtime.streaming.windows import WAVE, WindowEngine, default_window, first_of_batch, in_steps
from reuse_distill.runtime.tasks.decoder import Decoder, TaskEvent, TaskStream, decode, decoder_of

if TYPE_CHECKING:
    from reuse_distill.runtime.streaming.stream_scheduler import StreamScheduler

MOST_THREADS = 1_024


class Encoder:
    """Made by ``Encoder.load``. Holds no state of any stream: share it between streams and threads."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str,
        threads: int,
        provider_options: Mapping[str, str] | None = None,
        backend: Backend | None = None,  # opened by the caller: what no engine of the runtime runs
    ) -> None:
        self.bundle = bundle
        self._provider, self.threads, self._options = provider, threads, dict(provider_options or {})
        self._lock = threading.Lock()
        self._backend = backend
        self._batcher = Batcher(step_spec(bundle.manifest)) if bundle.manifest.kind == "streaming" else None
        self._latency = algorithmic_latency(self.geometry)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        provider: str = "auto",
        threads: int = 1,
        provider_options: Mapping[str, str] | None = None,
    ) -> Encoder:
        """Read and verify a bundle; its artifact is opened when it is first needed.

        ``provider``: cpu, cuda, tensorrt, coreml, qnn, xnnpack, or auto (CUDA where it starts, else CPU; the property
        ``provider`` tells which). ``provider_options`` go over the defaults of ``runtime.engines.providers``. Raises
        RdError for a damaged or deferred bundle and for a provider that is not there.
        """
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
            raise RdError(f"threads={threads!r}: a whole number from 1 to {MOST_THREADS} is needed")
        bundle = read_bundle(path)
        check_runnable(bundle, provider)
        return cls(bundle, provider=provider, threads=threads, provider_options=provider_options)

    def __repr__(self) -> str:
        m, g = self.manifest, self.geometry
        named = f"layer{'s' * (len(m.layers) > 1)} {', '.join(map(str, m.layers))} of {m.feature_width}"
        outputs = [named] * bool(m.layers) + [f"head {head.name}" for head in m.heads]
        window = f"window {g.left_frames} | {g.chunk_frames} | {g.right_frames} frames"
        if m.kind == "streaming":
            sizes = " or ".join(map(str, m.chunk_choices or (g.chunk_frames,)))
            window = f"chunks of {sizes} frames, look-ahead {g.lookahead_frames}"
        what = f"{m.kind} {m.target} {m.precision}, {', '.join(outputs)}"
        where = f"{self._provider}, {self.threads} thread{'s' * (self.threads > 1)}"
        return f"<Encoder {self.bundle.path.name}: {what}; {window}, {g.worst_latency_ms:.0f} ms worst; {where}>"

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def geometry(self) -> Geometry:
        """Chunk and context of a stream with default settings, in frames."""
        return default_window(self.manifest) if self.manifest.kind == "offline" else self.manifest.geometry

    @property
    def backend(self) -> Backend:
        """The opened artifact. Raises RdError where it cannot be opened or another provider would run it."""
        with self._lock:
            if self._backend is None:
                self._backend = open_backend(
                    self.bundle, provider=self._provider, threads=self.threads, options=self._options
                )
            return self._backend

    @property
    def provider(self) -> str:
        """The provider that runs (cpu, cuda, …)."""
        return self.backend.provider

    @property
    def placement(self) -> tuple[PlacedNode, ...] | None:
        """Every node of the graph with the provider that runs it; None where the engine does not report it."""
        return self.backend.nodes if isinstance(self.backend, ReportsNodes) else None

    @property
    def latency(self) -> Latency:
        """Latency of a stream at 16 kHz with default settings; compute is unmeasured until ``measure_latency``."""
        return self._latency

    def measure_latency(self, steps: int = 100) -> Latency:
        """Time ``steps`` steps of one stream on this machine; kept as ``latency``."""
        self._latency = time_steps(self.stream().engine, self._latency, steps=steps)
        return self._latency

    def selftest(self) -> SelfTest:
        """Run the recording in the bundle and compare with the features of its source, within the stated bound."""
        return run_selftest(self)

    def extract(self, samples: Any, sample_rate: int = SAMPLE_RATE_HZ) -> np.ndarray:
        """Features of a whole utterance: float32 (F, W), or (N, F, W) where the bundle exports several layers.

        ``samples`` (T,) or (T, channels), int16, float32 or float64. A streaming bundle gives exactly what its stream
        gives; an offline bundle sees the whole utterance at once. Raises RdError as ``Stream.push`` does.
        """
        return self.frames(samples, sample_rate).features

    def frames(self, samples: Any, sample_rate: int = SAMPLE_RATE_HZ) -> Frames:
        """All frames of a whole utterance: ``extract``'s features and the output of every head."""
        rate_hz = sample_rate_of(sample_rate)
        if self.manifest.kind != "offline":
            stream = self.stream(rate_hz)
            return self.joined([*stream.push(samples), *stream.finish()])
        wave = resample(mono(samples), rate_hz)
        if len(wave) < RECEPTIVE_FIELD_SAMPLES:
            return self.joined([])
        wave = self.manifest.input.prepared(wave)
        check_fits(self.manifest, frames_for(len(wave)))
        outputs = first_of_batch(self.backend.run({WAVE: wave[np.newaxis]}))
        return own_frames(outputs, 0, slice(frames_for(len(wave))))

    def events(self, samples: Any, head: str, sample_rate: int = SAMPLE_RATE_HZ) -> list[TaskEvent]:
        """What the head ``head`` makes of a whole utterance: words, units or labels with their times.

        Raises RdError where the bundle has no such head, and for a projection, whose numbers are in ``frames``.
        """
        decoder = self._decoder(head)
        return decode(decoder, self.frames(samples, sample_rate).heads[head])

    def task_stream(self, head: str) -> TaskStream:
        """A decoder for the rows of ``head`` in the frames of one stream: ``push(frames.heads[head])``."""
        return TaskStream(self._decoder(head))

    def _decoder(self, head: str) -> Decoder:
        output = self.manifest.head(head)
        if not output.weights:
            return decoder_of(output)
        from reuse_distill.runtime.tasks.xvector import read_xvector

        if output.weights not in self.manifest.files:  # nothing is opened that was not hashed
            raise RdError(f"{self.bundle.path}: {output.weights} of head {head!r} is not among its files")
        return decoder_of(output, read_xvector(self.bundle.path / output.weights, output))

    def join(self, parts: Sequence[Frames]) -> np.ndarray:
        """The features of consecutive ``Frames`` as one array: (F, W) or (N, F, W)."""
        layers, width = len(self.manifest.layers), self.manifest.feature_width
        none = np.zeros((0, width) if layers < 2 else (layers, 0, width), np.float32)
        return np.concatenate([none, *(part.features for part in parts)], axis=-2)

    def joined(self, parts: Sequence[Frames]) -> Frames:
        """Consecutive ``Frames`` as one, heads included."""
        heads = {
            head.name: np.concatenate(
                [np.zeros((0, head.columns), head.dtype), *(part.heads[head.name] for part in parts)]
            )
            for head in self.manifest.heads
        }
        return Frames(parts[0].index if parts else 0, self.join(parts), heads)

    def stream(
        self,
        sample_rate: int = SAMPLE_RATE_HZ,
        *,
        chunk_frames: int | None = None,
        left_frames: int | None = None,
        right_frames: int | None = None,
        fps: float | str | None = None,
    ) -> Stream:
        """A new stream for samples at ``sample_rate``.

        The frame counts set the sliding window of an offline bundle (default 16, 150 and 64: 0.32 s a step with 3 s
        before and 1.28 s after it). Other bundles have theirs built in; another value raises RdError, but for
        ``chunk_frames`` of a bundle with several: that is what the stream begins with. ``fps``:
        features per second instead of 50, exact means or interpolated (``streaming.frame_rate``), without heads.
        """
        frame_counts = {"chunk_frames": chunk_frames, "left_frames": left_frames, "right_frames": right_frames}
        geometry = self._geometry_of_stream({name: value for name, value in frame_counts.items() if value is not None})
        engine = self._engine(geometry)
        if fps is not None:
            engine = RateEngine(engine, rate_of(fps))
        return self._new_stream(engine, sample_rate_of(sample_rate))

    def streams(self, count: int, sample_rate: int = SAMPLE_RATE_HZ) -> list[Stream]:
        """``count`` streams whose states are neighbours in memory: ``step`` of all of them copies no state."""
        if count < 1:
            raise RdError(f"{count} streams: 1 or more are needed")
        rate_hz = sample_rate_of(sample_rate)
        if self._batcher is None:
            return [self.stream(rate_hz) for _ in range(count)]
        pool = open_pool(self._batcher.spec, self.backend, count)
        return [self._new_stream(StepEngine(pool, row, self._batcher), rate_hz) for row in range(count)]

    def step(self, streams: Sequence[Stream]) -> list[Frames | None]:
        """One step of every stream that is ``ready``, in batches (of up to eight, or of the bundle's fixed size).

        Streams are fed with ``feed`` and ended with ``end``; they may be anywhere in their audio. Returns what came out
        of each stream, in the order given; None for a stream that was not ready or whose step completed no frame.
        """
        if len({id(stream) for stream in streams}) != len(streams):
            raise RdError("the same stream is given twice in one step")
        ready = [i for i, stream in enumerate(streams) if stream.ready]
        engines = [streams[i].engine for i in ready]
        results: list[Frames | None] = [None] * len(streams)
        for i, frames in zip(ready, self._step_engines(engines), strict=True):
            results[i] = frames
        return results

    def scheduler(self, **settings: Any) -> StreamScheduler:
        """A scheduler for many live streams of this encoder, deadline first; see ``streaming.stream_scheduler``."""
        from reuse_distill.runtime.streaming.stream_scheduler import StreamScheduler

        return StreamScheduler(self, **settings)

    def _step_engines(self, engines: Sequence[Engine]) -> list[Frames | None]:
        if self._batcher is None:
            return [engine.step() for engine in engines]
        if any(isinstance(engine, RateEngine) for engine in engines):
            raise RdError("streams with fps are not stepped as a batch", hint="push to each of them")
        mine = [e for e in engines if isinstance(e, StepEngine) and e.batcher is self._batcher]
        if len(mine) != len(engines):
            raise RdError(f"{len(engines) - len(mine)} of {len(engines)} streams belong to another encoder")
        return self._batcher.step(mine)

    def _new_stream(self, engine: Engine, rate_hz: int) -> Stream:
        return Stream(engine, sample_rate_hz=rate_hz, identity=self._identity(engine, rate_hz))

    def _identity(self, engine: Engine, rate_hz: int) -> StreamIdentity:
        m, geometry = self.manifest, asdict(engine.geometry)
        artifact, student = m.artifact_sha256, m.source.get("sha256")
        rate = {"fps": str(engine.rate), "layers": list(m.layers)} if isinstance(engine, RateEngine) else {}
        checked = {
            "kind": m.kind,
            **({"artifact": artifact} if student is None else {"student": student}),
            **{name: value for name, value in geometry.items() if name != "chunk_frames" or m.kind != "streaming"},
            "sample_rate_hz": rate_hz,
            **rate,
        }
        old = {"artifact": artifact, **geometry, "sample_rate_hz": rate_hz}
        old |= {"fps": rate["fps"]} if rate else {}
        return StreamIdentity(checked, {"target": m.target, "precision": m.precision, "artifact": artifact}, old)

    def _engine(self, geometry: Geometry) -> Engine:
        if self._batcher is not None:
            pool = open_pool(self._batcher.spec, self.backend, 1)
            return StepEngine(pool, 0, self._batcher, geometry.chunk_frames)
        static = self.manifest.kind == "window"
        return WindowEngine(self.backend, geometry, static=static, level=self.manifest.input.running())

    def _geometry_of_stream(self, frame_counts: dict[str, int]) -> Geometry:
        if self.manifest.kind == "offline":
            step = self.manifest.geometry.step_frames
            return in_steps(Geometry(**{**_fields(self.geometry), **frame_counts}, step_frames=step))
        built_in = _fields(self.geometry)
        if self._batcher is not None and "chunk_frames" in frame_counts and self.manifest.chunk_choices:
            return self._batcher.spec.of_chunk(frame_counts["chunk_frames"]).geometry
        for name, value in frame_counts.items():
            if value != built_in[name]:
                raise RdError(
                    f"{name}={value}: this {self.manifest.kind} bundle was exported with {built_in[name]}",
                    hint="leave it out, or export a bundle with the value you want",
                )
        return self.geometry


def _fields(geometry: Geometry) -> dict[str, int]:
    return {
        "chunk_frames": geometry.chunk_frames,
        "left_frames": geometry.left_frames,
        "right_frames": geometry.right_frames,
    }
