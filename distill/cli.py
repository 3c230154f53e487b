"""``rd-distill``: from a teacher to a student."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from reuse_distill.distill.analysis.analyse_command import add_analyse_parser
from reuse_distill.distill.compress.compress_command import add_compress_parser
from reuse_distill.distill.evaluation.evaluate_command import add_evaluate_parser
from reuse_distill.distill.tasks.head_command import add_head_parser
from reuse_distill.distill.tradeoff.tradeoff_command import add_search_parser, add_tradeoff_parser
from reuse_distill.runtime.cli.command_line import CommandParser
from reuse_distill.runtime.cli.progress import on_terminal, print_header, print_next, to_stderr
from reuse_distill.runtime.errors import RdError, cli, install_hint

PRECISIONS = {"auto": "auto", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
# Commands whose code stands beside what they run: module and function, imported when needed.
COMMANDS = {
    "evaluate": ("evaluation.evaluate_command", "run_evaluate"),
    "head": ("tasks.head_command", "run_head"),
    "compress": ("compress.compress_command", "run_compress"),
    "tradeoff": ("tradeoff.tradeoff_command", "run_tradeoff_command"),
    "search": ("tradeoff.tradeoff_command", "run_search_command"),
    "analyse": ("analysis.analyse_command", "run_analyse"),
}
RUN_USAGE = "rd-distill run RECIPE --teacher DIR --data PATH --output DIR [options] [key=value ...]"
RUN_HELP = "Distil a student by a recipe. Settings are changed with key=value, for example optimiser.lr=1e-3."


def parser() -> CommandParser:
    """The command line."""
    top = CommandParser(prog="rd-distill", description="Distil a speech teacher into a small student.")
    commands = top.add_subparsers(dest="command", required=True)
    _add_run_parser(commands)
    _add_targets_parser(commands)
    recipes = commands.add_parser("recipes", help="list the shipped recipes")
    recipes.add_argument("--show", metavar="NAME", help="print one recipe with its sources")
    _add_prepare_parser(commands)
    add_evaluate_parser(commands)
    add_head_parser(commands)
    add_compress_parser(commands)
    add_tradeoff_parser(commands)
    add_search_parser(commands)
    add_analyse_parser(commands)
    _add_publish_parser(commands)
    return top


def _add_run_parser(commands: Any) -> None:
    run = commands.add_parser("run", help="distil a student", description=RUN_HELP, usage=RUN_USAGE)
    run.add_argument("recipe", help="name of a shipped recipe (see rd-distill recipes) or a YAML file")
    run.add_argument("--teacher", help="transformers folder, .pt file or torchaudio:BUNDLE")
    run.add_argument("--targets", type=Path, metavar="DIR", help="the teacher's layers, written by rd-distill targets")
    run.add_argument("--data", required=True, help="folder of audio, manifest CSV, lhotse cuts or lhotse Shar")
    run.add_argument("--validation", metavar="AUDIO|SHARE", help="other audio, or the share to hold out, such as 0.05")
    run.add_argument("--validate-every", type=int, metavar="STEPS", help="how often (default: with every checkpoint)")
    run.add_argument(
        "--keep-best", type=int, metavar="K", help="how many checkpoints with the lowest held-out loss to keep"
    )
    run.add_argument("--output", type=Path, required=True, help="run folder; the student goes to OUTPUT/student")
    run.add_argument("--student", help="student preset instead of the recipe's")
    run.add_argument("--init", type=Path, metavar="CHECKPOINT", help="start from this student's weights")
    run.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's length")
    run.add_argument("--seed", type=int, help="seed of weights, batches and masks")
    run.add_argument("--resume", action="store_true", help="continue the run in OUTPUT exactly where it was saved")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    run.add_argument("--tensorboard", action="store_true", help="event files in OUTPUT/tensorboard")
    run.add_argument("--precision", choices=tuple(PRECISIONS), help="precision of the student (auto: bf16 on CUDA)")
    run.add_argument("--compile", action="store_true", help="torch.compile the student")
    run.add_argument("--strategy", choices=("auto", "ddp", "fsdp"), default="auto", help="auto: ddp above 1 process")
    run.add_argument("--devices", type=int, default=1, help="processes on this host")
    run.add_argument("--nodes", type=int, default=1, help="hosts (torchrun or SLURM start the processes)")


def _add_targets_parser(commands: Any) -> None:
    targets = commands.add_parser("targets", help="compute a teacher's layers once, for many runs")
    targets.add_argument("--teacher", required=True, help="transformers folder, .pt file or torchaudio:BUNDLE")
    targets.add_argument("--data", required=True, help="folder of audio, manifest CSV, lhotse cuts or lhotse Shar")
    targets.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the targets; an interrupted command continues there",
    )
    targets.add_argument("--layers", metavar="N,N", help="layers to store, from 1 (default: all)")
    targets.add_argument(
        "--position-mean",
        type=Path,
        metavar="TARGETS",
        help="Whisper: take the mean of each position from the targets of a larger set",
    )
    targets.add_argument("--split", help="value of the manifest's column 'split' to keep")
    targets.add_argument("--bad-limit", type=float, default=0.05, help="share of files that may be damaged")
    targets.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add_prepare_parser(commands: Any) -> None:
    prepare = commands.add_parser("prepare", help="write a manifest or lhotse Shar of LibriSpeech or a folder of audio")
    prepare.add_argument("data", type=Path, help="LibriSpeech (or part of it), folder of audio, manifest or cuts")
    prepare.add_argument("--output", type=Path, metavar="CSV", help="manifest: file, speaker, text, split, seconds")
    prepare.add_argument("--shar", metavar="DIR", help="folder or s3://… of FLAC shards, for sets larger than one disk")
    prepare.add_argument("--shard-size", type=int, default=1000, help="utterances per shard")
    prepare.add_argument(
        "--bad-limit", type=float, default=0.05, help="largest share of damaged files that is accepted"
    )


def _add_publish_parser(commands: Any) -> None:
    share = commands.add_parser("publish", help="write a hub-ready folder: model card, licence, code for transformers")
    share.add_argument("folder", type=Path, help="checkpoint folder of a student")
    share.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to create")
    share.add_argument("--licence", metavar="SPDX", help="licence of the weights, if the student states none")
    share.add_argument("--name", help="name on the hub, such as ORG/NAME (default: the folder's name)")
    share.add_argument("--metrics", type=Path, metavar="JSON", help="results of rd-distill evaluate, for the card")


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; errors of the user's end with status 2."""
    args = _parse(argv)
    _need_torch()
    here = {"run": _run, "targets": _targets, "recipes": _recipes, "prepare": _prepare, "publish": _publish}
    if args.command in here:
        return here[args.command](args)
    module, function = COMMANDS[args.command]
    run: Callable[[argparse.Namespace], int] = getattr(import_module(f"reuse_distill.distill.{module}"), function)
    return run(args)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse, and ``key=value`` anywhere after the recipe."""
    args, rest = parser().parse_known_args(argv)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    unknown = [word for word in rest if word not in overrides]
    if unknown or (overrides and args.command not in ("run", "compress", "tradeoff")):
        raise RdError(f"unknown argument: {' '.join(unknown or overrides)}", hint="see rd-distill --help")
    args.overrides = overrides
    return args


def _run(args: argparse.Namespace) -> int:
    from reuse_distill.distill.recipe import load_recipe
    from reuse_distill.distill.training import RunSettings, run

    if args.teacher is None and args.targets is None:
        raise RdError("there is nothing to learn from", hint="--teacher TEACHER, or --targets DIR")
    for name in ("teacher", "data"):
        if getattr(args, name) == "":  # of a variable that is not set: as a path it would be this folder
            raise RdError(f"--{name} is empty", hint=f"name {'a teacher' if name == 'teacher' else 'audio'}")
    if args.validation is None and (args.validate_every is not None or args.keep_best is not None):
        raise RdError("--validate-every and --keep-best are of held-out losses", hint="add --validation AUDIO|SHARE")
    recipe = load_recipe(args.recipe, [*_shortcuts(args), *args.overrides])
    settings = RunSettings(
        teacher=args.teacher,
        data=args.data,
        output=args.output,
        resume=args.resume,
        init=args.init,
        device=args.device,
        devices=args.devices,
        nodes=args.nodes,
        strategy=args.strategy,
        compile=args.compile,
        validation=args.validation,
        tensorboard=args.tensorboard,
        targets=args.targets,
    )
    if on_terminal():
        facts = [("recipe", args.recipe), ("teacher", args.teacher), ("data", args.data)]
        precision = args.precision or recipe.training.precision
        print_header("rd-distill run", [*facts, ("on", args.device), ("precision", precision), ("to", args.output)])
    checkpoint = run(recipe, settings)
    from lightning_fabric.utilities import rank_zero_only  # run has seen to it that it is installed

    rank_zero_only(print)(checkpoint)
    if on_terminal():
        rank_zero_only(print_next)("rd-export", checkpoint, "--output", "bundle")
    if checkpoint != args.output:  # all steps are done
        rank_zero_only(print_next)("rd-export", checkpoint, "--target", "onnx", "--output", args.output / "bundle")
    return 0


def _targets(args: argparse.Namespace) -> int:
    from reuse_distill.distill.data.utterances import find_utterances
    from reuse_distill.distill.teachers import open_teacher
    from reuse_distill.distill.teachers.making import make_targets
    from reuse_distill.distill.training.launch import device_named

    layers = None if args.layers is None else _layer_numbers(args.layers)
    scan = find_utterances(args.data, bad_limit=args.bad_limit, split=args.split)
    teacher = open_teacher(args.teacher).to(device_named(args.device))
    how = {"layers": layers, "position_mean_of": args.position_mean, "report": to_stderr}
    print(make_targets(teacher, scan, args.output, **how))
    return 0


def _layer_numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise RdError(f"--layers {text}", hint="numbers from 1 with commas, such as 2,4,6") from None


def _shortcuts(args: argparse.Namespace) -> list[str]:
    """Options that are settings of the recipe, as overrides; explicit key=value come after and win."""
    overrides = []
    if args.precision is not None:
        overrides.append(f"training.precision={PRECISIONS[args.precision]}")
    for option in ("validate_every", "keep_best"):
        if getattr(args, option) is not None:
            overrides.append(f"training.{option}={getattr(args, option)}")
    if args.student is not None:
        overrides.append(f"student.preset={args.student}")
    if args.steps is not None:
        overrides += [f"training.steps={args.steps}", "training.epochs=0"]
    if args.seed is not None:
        overrides.append(f"training.seed={args.seed}")
    return overrides


def _recipes(args: argparse.Namespace) -> int:
    from reuse_distill.distill.recipe import FOLDER, load_recipe, recipe_names

    if args.show is not None:
        load_recipe(args.show)
        sys.stdout.write((FOLDER / f"{args.show}.yaml").read_text(encoding="utf-8"))
        return 0
    names = recipe_names()
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {load_recipe(name).summary}")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from reuse_distill.distill.data.prepare import find_corpus, write_manifest, write_shar
    from reuse_distill.distill.data.reading import readable

    if args.output is None and args.shar is None:
        raise RdError("prepare has nothing to write", hint="--output MANIFEST.csv, --shar FOLDER, or both")
    if not 0 <= args.bad_limit <= 1:
        raise RdError(f"--bad-limit {args.bad_limit:g}", hint="a share of the files within 0..1, such as 0.05")
    scan = find_corpus(args.data, bad_limit=args.bad_limit)
    if args.shar is not None:  # what a shard holds is whole
        scan = readable(scan, bad_limit=args.bad_limit)
    for skipped in scan.skipped:
        print(f"skipped {skipped.path}: {skipped.reason}", file=sys.stderr)
    speakers = len({u.speaker for u in scan.utterances} - {""})
    hours = scan.seconds / 3600
    print(f"{len(scan.utterances)} utterances, {hours:.2f} h, {speakers or 'no'} speakers named", file=sys.stderr)
    if args.output is not None:
        print(write_manifest(scan, args.output))
    if args.shar is not None:
        print(write_shar(scan, args.shar, shard_size=args.shard_size))
    return 0


def _publish(args: argparse.Namespace) -> int:
    from reuse_distill.distill.publish import publish

    files = publish(args.folder, args.to, licence=args.licence, name=args.name, metrics=args.metrics)
    print(f"{args.to}: {', '.join(file.name for file in files)}")
    print_next("hf", "upload", args.name or "ORG/NAME", args.to)
    return 0


def _need_torch() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise RdError(f"{error.name} is not installed", hint=install_hint("distill")) from None


if __name__ == "__main__":
    sys.exit(main(None))
