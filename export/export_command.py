"""``rd-export``: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from reuse_distill.export.capture.exported_layers import layer_numbers
from reuse_distill.export.checkpoint_source import Source, read_source
from reuse_distill.export.parity.reference import MOST_CHECKED, read_named_clips, synthetic_clips
from reuse_distill.export.pipeline import CheckAudio, export_bundle
from reuse_distill.export.quantise.calibration import CalibrationSet, read_calibration
from reuse_distill.export.quantise.options import quantisation_of
from reuse_distill.export.quantise.quantisation_recipe import of_precision
from reuse_distill.export.spec import (
    ExportSpec,
    Mode,
    Offline,
    SlidingWindow,
    Streaming,
    WindowContext,
    check_features,
    feature_width,
    parse_layers,
)
from reuse_distill.export.targets import check_possible, find_target
from reuse_distill.runtime.audio.recordings import Recording, find_recordings
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.cli.progress import print_header, print_next
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext, StudentConfig
from reuse_distill.student.foreign.task_heads import foreign_heads
from reuse_distill.student.step import check_streamable
from reuse_distill.student.tasks import LoadedHead, load_head

# Targets whose modules are written out anew: they know the layers of students, not all of other libraries'.
ROW_TARGETS = ("coreml", "executorch", "litert")
OWN_HEADS = "own"  # --head own: what the folder of an encoder has beside it
EXIT_DEFERRED = 5  # written, but its device has to finish it


def export_command_line(args: argparse.Namespace) -> int:
    """One export; exit status 0 when the bundle is written and proven, 5 when its device has to finish it."""
    manifest = export_from(args)
    print(summary(manifest, args.output))
    if manifest.status == "deferred":
        print_next("rd-export", "finish", args.output)
        return EXIT_DEFERRED
    print_next("rd-latency", args.output)
    return 0


def export_from(args: argparse.Namespace) -> Manifest:
    """One export as the options ask for it. Raises RdError where it cannot be or does not keep its bound."""
    source = read_source(args.checkpoint, args.config)
    for note in source.notes:
        print(note, file=sys.stderr, flush=True)
    spec = with_heads(read_spec(args, source.student.config), args, source)
    check_encoder(spec, source.student.config)
    check_possible(find_target(spec.target), spec)
    if args.output.exists() and not args.overwrite:
        raise RdError(f"{args.output}: exists already", hint="choose another --output, or give --overwrite")
    audio = read_audio_of(args, spec)
    print_header("rd-export", header(source, spec, audio, args.output))
    return export_bundle(
        source,
        spec,
        args.output,
        audio=audio,
        min_cosine=args.min_cosine,
        min_agreement=args.min_agreement,
        overwrite=args.overwrite,
        say=lambda what: print(f"{what} …", file=sys.stderr, flush=True),
    )


def header(source: Source, spec: ExportSpec, audio: CheckAudio, output: Path) -> list[tuple[str, object]]:
    """What is about to be made, of what, checked on what, and where."""
    parameters = sum(p.numel() for p in source.student.parameters())
    calibration = audio.calibration
    return [
        ("student", f"{source.name}, {parameters / 1e6:.1f} M parameters"),
        ("target", f"{spec.target}, {spec.mode.name}"),
        ("precision", spec.precision),
        ("layers", f"{spec.features} of {', '.join(map(str, spec.layers))}" if spec.layers else ""),
        (
            "calibration",
            calibration and f"{calibration.seconds:.0f} s of speech at {calibration.level_dbfs:.0f} dBFS",
        ),
        ("checked on", f"{len(audio.clips)} clips: {audio.clips_are}"),
        ("output", output),
    ]


def read_spec(args: argparse.Namespace, config: StudentConfig) -> ExportSpec:
    """The export that the options ask for; raises RdError for combinations that cannot be."""
    mode = read_mode(args, config)
    precision, given = quantisation_of(args, config)
    _check_int8_options(args, precision)
    if args.delegate is not None and args.target != "executorch":
        raise RdError(f"--delegate {args.delegate} is for --target executorch")
    if args.gpu is not None and args.target != "tensorrt-rtx":
        raise RdError(f"--gpu {args.gpu} is for --target tensorrt-rtx")
    features = check_features(None if args.features == "none" else args.features, config)
    return ExportSpec(
        args.target,
        mode,
        precision,
        parse_layers(args.layers, config, features),
        features,
        args.front_end,
        max_drift=args.max_drift,
        given=given,
        preset=args.preset,
        jetpack=args.jetpack,
        gpu=args.gpu,
        delegate=args.delegate or "xnnpack",
    )


def check_encoder(spec: ExportSpec, config: StudentConfig) -> None:
    """Raises RdError where an encoder of another library cannot be exported as ``spec`` says."""
    if isinstance(spec.mode, Streaming):
        check_streamable(config)
    if spec.target in ROW_TARGETS and config.front_end == "whisper":
        raise RdError(
            f"--target {spec.target} has no log-mel spectrum of 30 s in its graph, which Whisper's encoder begins with",
            hint="use --target onnx, ort or tensorrt",
        )


def read_mode(args: argparse.Namespace, config: StudentConfig) -> Mode:
    """What one call of the artifact computes; raises RdError for options of another mode."""
    streaming, window = args.mode == "streaming", args.mode == "window"
    if args.batch is not None and (not streaming or args.batch < 1):
        raise RdError(f"--batch {args.batch} is for --mode streaming, 1 or more")
    holders = {"engine": ("coreml", "openvino"), "whole": ("onnx", "ort")}.get(args.states)
    if holders is not None and (not streaming or args.target not in holders):
        raise RdError(f"--states {args.states} is for --target {' or '.join(holders)} --mode streaming")
    if args.window_norm != "window" and not window:
        raise RdError(f"--window-norm {args.window_norm} is for --mode window")
    offline = Offline() if args.max_seconds is None else Offline(args.max_seconds)
    if args.max_seconds is not None and args.mode != "offline":
        raise RdError(f"--max-seconds {args.max_seconds:g} is for --mode offline: a {args.mode} call has a fixed size")
    sizes = {"left_frames": args.left, "chunk_frames": args.chunk, "right_frames": args.right}
    given = {name: frames for name, frames in sizes.items() if frames is not None}
    if args.chunks is not None and not streaming:
        raise RdError(f"--chunks {args.chunks} is for --mode streaming")
    if streaming:
        if args.right is not None:
            raise RdError("--right is for --mode window; a stream's look-ahead is trained into the student")
        context, chunks = config.context or ChunkContext(8, 128), read_chunks(args.chunks)
        if chunks and args.chunk is None and context.chunk_frames not in chunks:
            given["chunk_frames"] = max([c for c in chunks if c <= context.chunk_frames], default=chunks[0])
        return Streaming(dataclasses.replace(context, **given), args.batch, args.states, chunks)
    if window:
        return SlidingWindow(WindowContext(**given), args.window_norm)
    if given:
        raise RdError("--chunk, --left and --right are for --mode window or streaming")
    return offline


def read_chunks(text: str | None) -> tuple[int, ...]:
    """``1,4,8,16`` -> the sizes, smallest first; raises RdError for anything else."""
    if text is None:
        return ()
    try:
        return tuple(sorted(int(part) for part in text.split(",")))
    except ValueError:
        raise RdError(f"--chunks {text!r} is not a list of frames", hint="such as 1,4,8,16") from None


def _heads_of(folder: Path, source: Source) -> tuple[LoadedHead, ...]:
    """The head in ``folder``; ``own``: those that stand beside a foreign encoder in its checkpoint."""
    if str(folder) != OWN_HEADS or folder.exists():
        return (load_head(folder),)
    if source.foreign is None:
        raise RdError(f"--head {OWN_HEADS}: {source.name} is a student, its heads are folders of their own")
    return foreign_heads(source.foreign)


def with_heads(spec: ExportSpec, args: argparse.Namespace, source: Source) -> ExportSpec:
    """The export with the heads that are requested; raises RdError for one that is not of this student."""
    if args.min_agreement is not None and not 0 < args.min_agreement <= 1:
        raise RdError(f"--min-agreement {args.min_agreement} is outside 0..1")
    if not args.head:
        if args.features == "none" or args.min_agreement is not None:
            option = "--features none" if args.features == "none" else "--min-agreement"
            raise RdError(f"{option} is for exports with --head HEAD")
        return spec
    if args.features == "none" and args.max_drift is not None:
        raise RdError(
            "--max-drift measures features, and --features none leaves them out", hint="leave one of them out"
        )
    tasks = tuple(task for folder in args.head for task in _heads_of(folder, source))
    config, takes = source.student.config, tasks[0].config.takes
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RdError(f"two heads are named {twice!r}", hint="give one another --name where it is trained")
    for task in tasks:
        if task.config.takes != takes:
            raise RdError(f"head {task.name!r} takes {task.config.takes} features, {names[0]!r} takes {takes}")
        if takes == "heads":
            check_features("heads", config)
        width, known = feature_width(takes, config), layer_numbers(config, takes)
        if source.foreign is not None and takes == "hidden":
            known = (0, *known)
        task.check_fits(sha256=source.sha256, width=width, known=known, where=source.name)
    if args.features not in (None, "none", takes):
        raise RdError(
            f"--features {args.features}: head {names[0]!r} takes {takes} features",
            hint=f"--features {takes} or --features none",
        )
    exported_layers = () if args.features == "none" else parse_layers(args.layers, config, takes)
    needed = sorted({layer for task in tasks for layer in task.config.layers} - set(exported_layers))
    return dataclasses.replace(
        spec, features=takes, layers=(*exported_layers, *needed), shown=exported_layers, tasks=tasks
    )


def _check_int8_options(args: argparse.Namespace, precision: str) -> None:
    if args.min_cosine is not None and not 0 < args.min_cosine <= 1:
        raise RdError(f"--min-cosine {args.min_cosine} is outside 0..1")
    if args.min_cosine is not None and precision in ("fp32", "fp16", "bf16"):
        raise RdError(f"--min-cosine is for --precision int8, this export is {precision}")
    if args.front_end != "auto" and not of_precision(precision).calibrates:
        raise RdError(f"--front-end is for --precision int8, this export is {precision}")


def read_audio_of(args: argparse.Namespace, spec: ExportSpec) -> CheckAudio:
    """Calibration and check recordings; without any, checks use seeded speech-like signals and say so."""
    calibration = None
    needed = spec.recipe.calibrates or (isinstance(spec.mode, SlidingWindow) and spec.mode.norm == "calibrated")
    if needed or args.calibration is not None:
        if args.calibration is None:
            raise RdError(
                f"{spec.precision} {spec.mode.name} needs speech to calibrate with",
                hint="add --calibration AUDIO (a folder, 20 s or more)",
            )
        calibration = read_calibration(args.calibration, accept_narrow=args.accept_narrow_calibration)
    if args.check is not None:
        return _audio(calibration, find_recordings(args.check), f"recordings of {args.check.name}")
    if calibration is not None and calibration.held_out:
        return _audio(calibration, calibration.held_out, "recordings held out of calibration")
    if calibration is not None:
        return CheckAudio(calibration, list(calibration.clips[:MOST_CHECKED]), "the calibration recordings themselves")
    return CheckAudio(calibration, synthetic_clips(), "seeded speech-like signals")


def _audio(calibration: CalibrationSet | None, recordings: Sequence[Recording], clips_are: str) -> CheckAudio:
    named = read_named_clips(recordings)
    return CheckAudio(calibration, [clip for _, clip in named], clips_are, tuple(name for name, _ in named))


def summary(manifest: Manifest, output: Path) -> str:
    """What was made, in a few lines for the terminal."""
    proof, g = manifest.graph_proof, manifest.geometry
    compared = manifest.parity.get("prepared", manifest.parity)  # of a deferred bundle: what could run here
    measured = compared["measured"]
    assert proof is not None  # noqa: S101  (a bundle without one is not written)
    size_mb = manifest.artifact_bytes / 1e6
    maps = f"{proof.computed_maps} attention maps computed for {proof.layers} layers, {len(proof.reused)} reused"
    parity = f"max abs {measured['max_abs']:.2e}, mean frame cosine {measured['mean_cosine']:.5f}"
    lines = [
        f"{output}: {manifest.kind} {manifest.target} {manifest.precision}, {size_mb:.1f} MB",
        f"  graph   {maps}: proven",
        f"  parity  {parity} ({compared['audio']})",
    ]
    for name, entry in compared.get("heads", {}).items():
        figures = {k: v for k, v in entry["measured"].items() if k in ("agreement", "max_abs", "mean_cosine")}
        lines.append(f"  head    {name}: " + ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in figures.items()))
    if "run" in compared:
        lines[2] += f", of {compared['run']}; the engine is unmeasured"
    if "run" in compared and manifest.status == "built":
        lines.append(f"  unmeasured: compare it on its GPU with  rd-export finish {output}")
    if manifest.status == "deferred":
        lines.append("  deferred: the device has to finish it")
    if manifest.kind != "offline":
        latency = f"{g.worst_latency_ms:.0f} ms worst, {g.mean_latency_ms:.0f} ms mean"
        lines.append(f"  latency {latency}, plus compute (chunk of {g.chunk_frames} frames)")
    if manifest.chunk_choices:
        worst = [dataclasses.replace(g, chunk_frames=c).worst_latency_ms for c in manifest.chunk_choices]
        sizes = ", ".join(f"{c} ({ms:.0f} ms)" for c, ms in zip(manifest.chunk_choices, worst, strict=True))
        lines.append(f"  dial    steps of {sizes} frames, exact across switches")
    return "\n".join(lines)
