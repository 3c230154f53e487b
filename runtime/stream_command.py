"""rd-stream: features of a file, of raw PCM on standard input, or of the microphone, as they come."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from reuse_distill.runtime.audio import AudioFile
from reuse_distill.runtime.bundle import MANIFEST, SHIPPED
from reuse_distill.runtime.certify import HEADER, certify, write_certificate
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.framing import Frames
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.runtime.mic import LiveLine, Microphone, list_devices
from reuse_distill.runtime.pcm import pcm_blocks
from reuse_distill.runtime.placement import placement_lines, placement_summary
from reuse_distill.runtime.provider_options import parse_options
from reuse_distill.runtime.samples import sample_rate_of
from reuse_distill.runtime.stats import RunStats
from reuse_distill.runtime.stream import Stream
from reuse_distill.runtime.writers import Writer, open_writer


def stream_command(args: argparse.Namespace) -> int:
    """Do what the options of ``rd_stream.parser`` ask for; the exit status."""
    if args.list_devices:
        print(list_devices())
        return 0
    with _plain_warnings():
        if args.certify:
            return _certify(args)
        if args.placement:
            return _placement(args)
        if args.mic:
            return _microphone(args)
        return _pcm(args) if _input(args)[0] == "-" else _file(args)


def _file(args: argparse.Namespace) -> int:
    path, bundle = _input(args)
    if args.rate or args.format:
        raise RdError("--rate and --format are for raw PCM on standard input; a file says both itself")
    encoder = _load(args, bundle)
    with AudioFile(path) as audio, _stream(encoder, args, audio.sample_rate_hz) as stream:
        return _run(args, encoder, stream, audio.blocks(_step_samples(stream)))


def _pcm(args: argparse.Namespace) -> int:
    encoder = _load(args, _input(args)[1])
    rate_hz = sample_rate_of(SAMPLE_RATE_HZ if args.rate is None else args.rate)
    with _stream(encoder, args, rate_hz) as stream:
        blocks = pcm_blocks(
            sys.stdin.buffer,
            format=args.format or "s16le",
            channels=args.channels,
            block_samples=_step_samples(stream),
        )
        return _run(args, encoder, stream, blocks)


def _microphone(args: argparse.Namespace) -> int:
    encoder = _load(args, _paths(args, 1)[0] if args.paths else None)
    rate_hz = None if args.rate is None else sample_rate_of(args.rate)
    microphone = Microphone(device=_device(args.device), wanted_rate_hz=rate_hz, seconds=args.seconds)
    line = LiveLine(sys.stderr, behind_s=lambda: microphone.behind_s)
    # Ctrl-C ends the recording, not the program: the last frames are still to come.
    previous = signal.signal(signal.SIGINT, lambda *_: microphone.stop())
    try:
        with _stream(encoder, args, microphone.rate_hz) as stream:
            status = _run(args, encoder, stream, microphone.blocks(), line=line)
    finally:
        signal.signal(signal.SIGINT, previous)
    if microphone.overflows:
        print(f"warning: samples were lost {microphone.overflows} times: this machine is too slow", file=sys.stderr)
    return status


def _certify(args: argparse.Namespace) -> int:
    """Run the equivalence gate and write its certificate; other bundles run their selftest, which writes nothing."""
    encoder = _load(args, _paths(args, 1)[0])
    if encoder.manifest.kind != "streaming":
        result = encoder.selftest()
        print(f"the gate is for streaming bundles; selftest of this {encoder.manifest.kind} bundle {result}")
        return 0 if result.passed else 1
    print(HEADER)
    certificate = certify(encoder, progress=print)
    path = write_certificate(certificate, encoder.bundle.path)
    limits = ", ".join(f"{name} {value:g}" for name, value in certificate.bound.items())
    verdict = "certified" if certificate.passed else "NOT certified"
    print(f"{verdict} within {limits} on {certificate.provider}, {certificate.threads} thread(s); written to {path}")
    return 0 if certificate.passed else 1


def _placement(args: argparse.Namespace) -> int:
    """Every node and its provider on stdout, the sums on stderr."""
    encoder = _load(args, _paths(args, 1)[0])
    nodes = encoder.placement
    if nodes is None:
        raise RdError(
            f"{encoder.bundle.path}: which provider runs which node of this {encoder.manifest.target} file is not told",
            hint="ONNX Runtime tells it from 1.24 on, of .onnx files",
        )
    for line in placement_lines(nodes):
        print(line)
    print(placement_summary(nodes), file=sys.stderr)
    return 0


def _run(
    args: argparse.Namespace,
    encoder: Encoder,
    stream: Stream,
    blocks: Iterable[np.ndarray],
    *,
    line: LiveLine | None = None,
) -> int:
    """Pump blocks through the stream into the output."""
    stats = RunStats()
    with open_writer(args.output, empty=encoder.join([])) as writer:
        for block in blocks:
            _write(writer, stats.timed(partial(stream.push, block)))
            stats.audio_s = stream.seconds
            if line is not None:
                line.show(block, stats)
        if line is not None:
            line.end()
        _write(writer, stats.timed(stream.finish))
    if args.stats:
        print(
            f"{stats}\nprovider {encoder.provider}; latency before compute: {stream.latency.algorithmic}",
            file=sys.stderr,
        )
        print(f"features: {_exactness(encoder, stream)}", file=sys.stderr)
    return 0


def _write(writer: Writer, parts: Sequence[Frames]) -> None:
    for frames in parts:
        writer.write(frames)


def _exactness(encoder: Encoder, stream: Stream) -> str:
    if encoder.manifest.kind == "streaming":
        bound = encoder.manifest.parity.get("bound") or {"no stated bound": ""}
        return (
            f"of the exact step graph, within {', '.join(f'{k} {v}'.strip() for k, v in bound.items())} of its source"
        )
    g = stream.engine.geometry
    return f"approximate, a window of {g.left_frames} | {g.chunk_frames} | {g.right_frames} frames at a time"


def _load(args: argparse.Namespace, bundle: str | None) -> Encoder:
    """The encoder of ``bundle``; without one the shipped student, which is said."""
    if bundle is None:
        print(f"bundle: {SHIPPED.name}, shipped with this program; name a BUNDLE for another", file=sys.stderr)
    return Encoder.load(
        SHIPPED if bundle is None else bundle,
        provider=args.provider,
        threads=args.threads,
        provider_options=parse_options(args.provider_option),
    )


def _stream(encoder: Encoder, args: argparse.Namespace, rate_hz: int) -> Stream:
    return encoder.stream(rate_hz, chunk_frames=args.chunk, left_frames=args.left, right_frames=args.right)


def _step_samples(stream: Stream) -> int:
    """Source samples per step, so that the time of a push is the time of a step."""
    return max(1, round(stream.latency.step_audio_ms * stream.sample_rate_hz / 1000))


def _input(args: argparse.Namespace) -> tuple[str, str | None]:
    """INPUT, and BUNDLE where one is given."""
    if len(args.paths) != 1:
        path, bundle = _paths(args, 2)
        return path, bundle
    (path,) = args.paths
    if (Path(path) / MANIFEST).is_file():
        raise RdError(f"{path} is a bundle, and no audio was named", hint=f"rd-stream INPUT {path}")
    return path, None


def _paths(args: argparse.Namespace, count: int) -> list[str]:
    if len(args.paths) != count:
        wanted = "BUNDLE" if count == 1 else "INPUT BUNDLE"
        raise RdError(f"{len(args.paths)} paths given, {count} needed: {wanted}", hint="rd-stream --help")
    return list(args.paths)


def _device(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdigit() else name


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Each warning once, as a line on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", RuntimeWarning)
        warnings.showwarning = lambda message, *_args, **_kw: print(f"warning: {message}", file=sys.stderr)
        yield
