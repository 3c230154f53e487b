"""``rd-distill``: from a teacher to a student."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import RdError, cli

RUN_USAGE = "rd-distill run RECIPE --teacher DIR --data PATH --output DIR [options] [key=value ...]"
RUN_HELP = "Distil a student by a recipe. Settings are changed with key=value, for example optimiser.lr=1e-3."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="rd-distill", description="Distil a speech teacher into a small student.")
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="distil a student", description=RUN_HELP, usage=RUN_USAGE)
    run.add_argument("recipe", help="name of a shipped recipe (see rd-distill recipes) or a YAML file")
    run.add_argument("--teacher", type=Path, required=True, help="transformers folder of the teacher")
    run.add_argument("--data", type=Path, required=True, help="folder of audio, manifest CSV or lhotse cuts")
    run.add_argument("--output", type=Path, required=True, help="run folder; the student goes to OUTPUT/student")
    run.add_argument("--student", help="student preset instead of the recipe's")
    run.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's length")
    run.add_argument("--seed", type=int, help="seed of weights, batches and masks")
    run.add_argument("--resume", action="store_true", help="continue the run in OUTPUT exactly where it was saved")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    run.add_argument("--devices", type=int, default=1, help="processes on this host (DDP above 1)")
    run.add_argument("--nodes", type=int, default=1, help="hosts (torchrun or SLURM start the processes)")

    recipes = commands.add_parser("recipes", help="list the shipped recipes")
    recipes.add_argument("--show", metavar="NAME", help="print one recipe with its sources")

    teacher = commands.add_parser("make-teacher", help="write a small random teacher for demos and tests")
    teacher.add_argument("--output", type=Path, required=True)
    teacher.add_argument("--seed", type=int, default=0)
    return top


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; errors of the user's end with status 2."""
    args = _parse(argv)
    return {"run": _run, "recipes": _recipes, "make-teacher": _make_teacher}[args.command](args)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse, and ``key=value`` anywhere after the recipe."""
    args, rest = parser().parse_known_args(argv)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    unknown = [word for word in rest if word not in overrides]
    if unknown or (overrides and args.command != "run"):
        raise RdError(f"unknown argument: {' '.join(unknown or overrides)}", hint="see rd-distill --help")
    args.overrides = overrides
    return args


def _run(args: argparse.Namespace) -> int:
    _need_torch()
    from distill.recipe import load_recipe
    from distill.training import RunSettings, run

    recipe = load_recipe(args.recipe, [*_shortcuts(args), *args.overrides])
    settings = RunSettings(
        teacher=args.teacher,
        data=args.data,
        output=args.output,
        resume=args.resume,
        device=args.device,
        devices=args.devices,
        nodes=args.nodes,
    )
    print(run(recipe, settings))
    return 0


def _shortcuts(args: argparse.Namespace) -> list[str]:
    """--student, --steps and --seed as overrides; explicit key=value come after and win."""
    overrides = []
    if args.student is not None:
        overrides.append(f"student.preset={args.student}")
    if args.steps is not None:
        overrides += [f"training.steps={args.steps}", "training.epochs=0"]
    if args.seed is not None:
        overrides.append(f"training.seed={args.seed}")
    return overrides


def _recipes(args: argparse.Namespace) -> int:
    from distill.recipe import FOLDER, load_recipe, recipe_names

    if args.show is not None:
        load_recipe(args.show)
        sys.stdout.write((FOLDER / f"{args.show}.yaml").read_text(encoding="utf-8"))
        return 0
    names = recipe_names()
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {load_recipe(name).summary}")
    return 0


def _make_teacher(args: argparse.Namespace) -> int:
    _need_torch()
    from distill.teachers.tiny import make_teacher

    print(make_teacher(args.output, seed=args.seed))
    return 0


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise RdError(f"{error.name} is not installed", hint="pip install 'reuse-distill[distill]'") from None


if __name__ == "__main__":
    sys.exit(main(None))
