"""What rd-stream does: files, folders, standard input or the microphone through a bundle; certificates; placement."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from reuse_distill.runtime.audio.audio_files import Audio, AudioFile, read_audio
from reuse_distill.runtime.audio.mic import LiveLine, Microphone, list_devices
from reuse_distill.runtime.audio.samples import sample_rate_of
from reuse_distill.runtime.bundle_format.bundle import SHIPPED
from reuse_distill.runtime.cli.progress import Progress, on_terminal, print_header, with_progress
from reuse_distill.runtime.cli.stream_inputs import StreamInputs, pcm_blocks, read_inputs
from reuse_distill.runtime.cli.writers import (
    EventWriter,
    JsonlWriter,
    NpyWriter,
    Writer,
    open_output,
    open_task_writer,
    open_writer,
    output_kind,
)
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.engines.providers import parse_options, placement_lines, placement_summary
from reuse_distill.runtime.equivalence.certify import HEADER, Certificate, certify, write_certificate
from reuse_distill.runtime.equivalence.checks import checks_of
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ, samples_for
from reuse_distill.runtime.streaming.frame_rate import at_rate, rate_of
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.streaming.latency import RunStats
from reuse_distill.runtime.streaming.stream import Stream

WINDOW_OPTIONS = ("chunk", "left", "right")
LOWEST_RATE_HZ = 8000  # telephone speech: below it too little is left for features of speech


def stream_command(args: argparse.Namespace) -> int:
    """Do what the options of ``rd_stream.parser`` ask for; the exit status."""
    if args.list_devices:
        print(list_devices())
        return 0
    if args.head is not None and args.fps is not None:
        raise RdError("--fps is for features; results of --head have times of their own")
    if args.align is not None and args.head is None:
        raise RdError("--align needs a ctc head", hint="--head NAME")
    with _plain_warnings():
        if args.certify:
            return _certify(args)
        if args.placement:
            return _placement(args)
        if args.mic:
            return _microphone(args)
        inputs = read_inputs(args.paths, args.bundle)
        return _files(args, inputs) if inputs.recordings else _pcm(args, inputs)


def _files(args: argparse.Namespace, inputs: StreamInputs) -> int:
    """One recording, or several; exit status 2 where one of several could not be read, the others are written."""
    if args.rate or args.format:
        raise RdError("--rate and --format are for raw PCM on standard input; a file says both itself")
    if args.whole and any(getattr(args, name) is not None for name in WINDOW_OPTIONS):
        raise RdError("--chunk, --left and --right set a window; --whole computes the whole utterance at once")
    encoder = _load(args, inputs.bundle)
    if not inputs.several and not _is_folder(args.output):
        (path,) = inputs.recordings.values()
        with _writer(args, encoder) as writer:
            return _one_file(args, encoder, path, writer)
    failed = 0
    with _writers(args, encoder) as writer_of:
        for name, path in with_progress(list(inputs.recordings.items()), "files", name=lambda item: item[0]):
            try:
                with writer_of(name) as writer:
                    _one_file(args, encoder, path, writer)
            except RdError as error:
                print(f"error: {error}", file=sys.stderr)
                failed += 1
    if failed:
        print(f"{failed} of {len(inputs.recordings)} recordings could not be read", file=sys.stderr)
    return 2 if failed else 0


def _one_file(args: argparse.Namespace, encoder: Encoder, path: Path, writer: Writer) -> int:
    if args.whole:
        stats, recording = RunStats(), read_audio(path)
        _write(writer, stats.timed(lambda: [_whole(args, encoder, recording)]))
        stats.audio_s = recording.seconds
        _warn_of(path, recording.sample_rate_hz, recording.seconds)
        if args.stats:
            print(f"{stats}\nprovider {encoder.provider}\nfeatures: of the whole utterance", file=sys.stderr)
        return 0
    with AudioFile(path) as audio, _stream(encoder, args, audio.sample_rate_hz) as stream:
        seconds = audio.promised_samples / audio.sample_rate_hz
        with Progress(path.name, round(seconds, 1), unit="s of audio") as progress:
            blocks = audio.blocks(_step_samples(stream))
            status = _run(
                args,
                encoder,
                stream,
                blocks,
                writer,
                show=lambda _b, _s: progress.update(stream.seconds),
                clear=progress.close,
            )
        _warn_of(path, audio.sample_rate_hz, stream.seconds)
        return status


def _warn_of(path: Path, rate_hz: int, seconds: float) -> None:
    """What a recording cannot give, in words: features of little band, or none at all."""
    if rate_hz < LOWEST_RATE_HZ:
        warnings.warn(
            f"{path}: recorded at {rate_hz} Hz, so nothing above {rate_hz // 2} Hz is in it: features of speech need "
            f"{LOWEST_RATE_HZ} Hz or more",
            RuntimeWarning,
            stacklevel=2,
        )
    shortest_s = samples_for(1) / SAMPLE_RATE_HZ
    if seconds < shortest_s:
        warnings.warn(
            f"{path}: {1000 * seconds:.0f} ms, shorter than a frame of {1000 * shortest_s:.0f} ms: it has no features",
            RuntimeWarning,
            stacklevel=2,
        )


@contextmanager
def _writers(args: argparse.Namespace, encoder: Encoder) -> Iterator[Callable[[str], AbstractContextManager[Writer]]]:
    """How results of several recordings are written: lines of one JSON-lines output, or a file of each in a folder."""
    output = args.output
    if args.head is not None:
        if _is_folder(output):
            raise RdError(f"--output {output}: results of --head are lines", hint="--output NAME.jsonl, or -")
        with open_output(output) as file:

            @contextmanager
            def events(name: str) -> Iterator[Writer]:
                as_json = output != "-"
                writer = EventWriter(encoder, args.head, file, as_json=as_json, source=name, text=args.align)
                yield writer
                writer.end()

            yield events
        return
    if not _is_folder(output):
        if output_kind(output) == "npy":
            raise RdError(
                f"--output {output} takes one recording", hint="name a folder for several: --output features/"
            )
        with open_output(output) as file:

            @contextmanager
            def lines(name: str) -> Iterator[Writer]:
                yield JsonlWriter(file, source=name)

            yield lines
        return

    @contextmanager
    def array(name: str) -> Iterator[Writer]:
        target = (Path(output) / name).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_output(str(target)) as file:
            writer = NpyWriter(file, encoder.join([]))
            yield writer
            writer.end()

    yield array


def _is_folder(output: str) -> bool:
    return Path(output).is_dir() or output.endswith(("/", "\\"))


def _pcm(args: argparse.Namespace, inputs: StreamInputs) -> int:
    if args.whole:
        raise RdError("--whole is for files; standard input is streamed")
    if sys.stdin is None:
        raise RdError("standard input is closed", hint="pipe raw PCM into it, or name a file")
    encoder = _load(args, inputs.bundle)
    rate_hz = sample_rate_of(SAMPLE_RATE_HZ if args.rate is None else args.rate)
    with _stream(encoder, args, rate_hz) as stream, _writer(args, encoder) as writer:
        blocks = pcm_blocks(
            sys.stdin.buffer,
            format=args.format or "s16le",
            channels=args.channels,
            block_samples=_step_samples(stream),
        )
        return _run(args, encoder, stream, blocks, writer)


def _microphone(args: argparse.Namespace) -> int:
    encoder = _load(args, _only_bundle(args))
    rate_hz = None if args.rate is None else sample_rate_of(args.rate)
    microphone = Microphone(device=_device(args.device), wanted_rate_hz=rate_hz, seconds=args.seconds)
    line = LiveLine(sys.stderr, behind_s=lambda: microphone.behind_s)
    # Ctrl-C ends the recording, not the program: the last frames are still to come.
    previous = signal.signal(signal.SIGINT, lambda *_: microphone.stop())
    try:
        with (
            _stream(encoder, args, microphone.rate_hz) as stream,
            _writer(args, encoder) as writer,
        ):
            status = _run(
                args, encoder, stream, microphone.blocks(), writer, show=line.show, clear=line.clear, end=line.end
            )
    finally:
        signal.signal(signal.SIGINT, previous)
    if microphone.overflows:
        print(f"warning: samples were lost {microphone.overflows} times: this machine is too slow", file=sys.stderr)
    return status


def _certify(args: argparse.Namespace) -> int:
    """Run the equivalence gate and keep its certificate; other bundles run their self-test, which writes nothing."""
    bundle = _only_bundle(args)
    encoder = _load(args, bundle)
    if encoder.manifest.kind != "streaming":
        result = encoder.selftest()
        print(f"the gate is for streaming bundles; selftest of this {encoder.manifest.kind} bundle {result}")
        return 0 if result.passed else 1
    print(HEADER)
    checks = len(checks_of(encoder)) * (len(encoder.manifest.heads) + bool(encoder.manifest.layers))
    with Progress("certify", checks, unit="checks") as progress:
        done = 0

        def show(check: object) -> None:
            nonlocal done
            done += 1
            progress.close()
            print(check)
            progress.update(done)

        certificate = certify(encoder, progress=show)
    print("\n".join(certificate.summary()))
    print(_keep(certificate, args.output, encoder.bundle.path, shipped=bundle is None))
    return 0 if certificate.passed else 1


def _keep(certificate: Certificate, output: str, bundle: Path, *, shipped: bool) -> str:
    """Write the certificate to ``--output``, else into the bundle, but not into the program's own files."""
    if output != "-":
        return f"written to {write_certificate(certificate, Path(output))}"
    if shipped or bundle.resolve() == SHIPPED.resolve():
        return "not written: the bundle is part of this program; --output FILE keeps the certificate"
    return f"written to {write_certificate(certificate, bundle)}"


def _placement(args: argparse.Namespace) -> int:
    """Every node and its provider on stdout, the sums on stderr."""
    encoder = _load(args, _only_bundle(args))
    nodes = encoder.placement
    if nodes is None:
        raise RdError(
            f"{encoder.bundle.path}: the engine does not report which provider runs which node of this "
            f"{encoder.manifest.target} file",
            hint="ONNX Runtime reports it from 1.24 on, of .onnx files",
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
    writer: Writer,
    *,
    show: Callable[[np.ndarray, RunStats], None] | None = None,
    clear: Callable[[], None] | None = None,
    end: Callable[[], None] | None = None,
) -> int:
    """Pump blocks through the stream into the output; ``clear`` takes away what ``show`` drew where a line comes."""
    stats = RunStats()
    if clear is not None and isinstance(writer, EventWriter):
        writer.before_lines = clear
    for block in blocks:
        _write(writer, stats.timed(partial(stream.push, block)))
        stats.audio_s = stream.seconds
        if show is not None:
            show(block, stats)
    if end is not None:
        end()
    _write(writer, stats.timed(stream.finish))
    if args.stats:
        latency = f"latency before compute: {stream.latency.algorithmic}"
        print(f"{stats}\nprovider {encoder.provider}; {latency}", file=sys.stderr)
        print(f"features: {_exactness(encoder, stream)}", file=sys.stderr)
    return 0


def _write(writer: Writer, parts: Sequence[Frames]) -> None:
    for frames in parts:
        writer.write(frames)


def _exactness(encoder: Encoder, stream: Stream) -> str:
    """What the features are: those of the whole utterance, or of a window; and how near the model's source."""
    if encoder.manifest.kind == "streaming":
        bound = encoder.manifest.parity.get("bound") or {"no stated bound": ""}
        limits = ", ".join(f"{k} {v}".strip() for k, v in bound.items())
        return f"streamed exactly; the {encoder.manifest.precision} model is within {limits} of its source"
    g = stream.engine.geometry
    return (
        f"approximate, a window of {g.left_frames} | {g.chunk_frames} | {g.right_frames} frames at a time; "
        "--whole computes the whole utterance"
    )


def _load(args: argparse.Namespace, bundle: str | None) -> Encoder:
    """The encoder of ``bundle``, or of the shipped one, which is announced; on a terminal a header says what runs."""
    if bundle is None:
        print(f"bundle: {SHIPPED.name}, shipped with this program; name a BUNDLE for another", file=sys.stderr)
    encoder = Encoder.load(
        SHIPPED if bundle is None else bundle,
        provider=args.provider,
        threads=args.threads,
        provider_options=parse_options(args.provider_option),
    )
    if on_terminal():
        manifest = encoder.manifest
        device = f"{encoder.provider}, {encoder.threads} thread{'s' * (encoder.threads > 1)}"
        what = f"{manifest.kind} {manifest.target}, {manifest.precision}"
        where = "" if args.certify or args.placement else args.output
        print_header("rd-stream", [("bundle", encoder.bundle.path), ("is", what), ("on", device), ("to", where)])
    return encoder


def _stream(encoder: Encoder, args: argparse.Namespace, rate_hz: int) -> Stream:
    frames = {"chunk_frames": args.chunk, "left_frames": args.left, "right_frames": args.right}
    return encoder.stream(rate_hz, **frames, fps=args.fps)


def _writer(args: argparse.Namespace, encoder: Encoder) -> AbstractContextManager[Writer]:
    """Where features go, or the results of ``--head``."""
    if args.head is not None:
        return open_task_writer(args.output, encoder, args.head, text=args.align)
    return open_writer(args.output, empty=encoder.join([]))


def _whole(args: argparse.Namespace, encoder: Encoder, recording: Audio) -> Frames:
    """All frames of a recording at once."""
    frames = encoder.frames(recording.samples, recording.sample_rate_hz)
    if args.fps is None:
        return frames
    rate = rate_of(args.fps)
    return Frames(0, at_rate(frames.features, rate), rate_hz=rate)


def _step_samples(stream: Stream) -> int:
    """Source samples per step, so that the time of a push is the time of a step."""
    return max(1, round(stream.latency.step_audio_ms * stream.sample_rate_hz / 1000))


def _only_bundle(args: argparse.Namespace) -> str | None:
    """The one word of --mic, --certify and --placement; None for the shipped bundle."""
    words = [*args.paths, *([args.bundle] if args.bundle else [])]
    if len(words) > 1:
        raise RdError(f"{len(words)} paths given, one BUNDLE at most is needed", hint="rd-stream --help")
    return words[0] if words else None


def _device(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdigit() else name


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Each warning once, as a line on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", RuntimeWarning)
        warnings.showwarning = lambda message, *_args, **_kw: print(f"warning: {message}", file=sys.stderr)
        yield
