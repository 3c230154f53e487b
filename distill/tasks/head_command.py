"""The options of ``rd-distill head``, and what it does. Light: imports no torch before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuse_distill.runtime.cli.progress import to_stderr
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks.contract import TRAINED_KINDS

if TYPE_CHECKING:
    from reuse_distill.distill.tasks.finetune import Finetuning
    from reuse_distill.student.tasks import TaskHead


DEFAULT_LAYERS = {"classify": "all", "ctc": "all"}
ABOUT = "Train a head on the frozen features of a student, judge it on held-out data, and write a folder for rd-export."


def add_head_parser(commands: Any) -> None:
    """The subcommand's options."""
    head = commands.add_parser("head", help="train a head for a task on a student's features", description=ABOUT)
    head.add_argument("kind", choices=TRAINED_KINDS)
    head.add_argument("--student", type=Path, required=True, help="checkpoint folder")
    head.add_argument("--data", type=Path, required=True, help="manifest CSV with labels, transcripts or keywords")
    head.add_argument("--output", type=Path, required=True, help="head folder to write")
    head.add_argument("--name", help="name of the head (default: the output folder's name)")
    head.add_argument("--layers", help="last, all, or numbers from 1 (default: all for classify and ctc, else last)")
    head.add_argument("--features", choices=("hidden", "heads"), default="hidden", help="what the head takes")
    head.add_argument(
        "--fold",
        action="store_true",
        help="with --features heads: fold the projection heads into the new head's weights",
    )
    head.add_argument("--seed", type=int, default=0)
    head.add_argument("--licence", default="", metavar="TEXT", help="licence of the data, for the head's card")
    head.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that computes features")
    head.add_argument(
        "--label", choices=("label", "speaker"), default="label", help="classify: the manifest's column to predict"
    )
    head.add_argument("--window", type=float, metavar="S", help="classify: average the newest S seconds (default: all)")
    head.add_argument("--units", type=int, default=100, metavar="N", help="units: number of units (100)")
    head.add_argument(
        "--negatives",
        type=Path,
        action="append",
        default=[],
        metavar="AUDIO",
        help="spot: recordings of other speech; repeatable",
    )
    head.add_argument(
        "--parts", type=int, default=4, metavar="N", help="spot: parts that each keyword is split into (4)"
    )
    head.add_argument("--inner", type=int, default=64, metavar="N", help="spot: width of the hidden layer (64)")
    head.add_argument("--copies", type=int, default=4, metavar="N", help="spot: augmented copies of each recording (4)")
    head.add_argument(
        "--finetune-layers", type=int, metavar="N", help="classify, ctc: also fine-tune the last N layers"
    )
    head.add_argument("--finetune-epochs", type=int, default=3, metavar="N", help="epochs of fine-tuning (3)")
    head.add_argument("--finetuned", type=Path, metavar="DIR", help="folder for the fine-tuned student")
    head.add_argument("--teacher", type=Path, help="projection: the teacher whose features are predicted")
    head.add_argument(
        "--teacher-layer",
        type=int,
        default=-1,
        metavar="N",
        help="projection: layer to predict, from 0 (default: last)",
    )


def run_head(args: argparse.Namespace) -> int:
    """Train, print what was measured, write the folder."""
    from reuse_distill.distill.tasks.fit_spot import SpotSettings
    from reuse_distill.distill.tasks.made_head import card_of, fold_projection, open_student
    from reuse_distill.distill.tasks.train_head import HeadRequest, train_head
    from reuse_distill.distill.training.launch import device_named
    from reuse_distill.student import load_checkpoint
    from reuse_distill.student.tasks import save_head

    for name, value, low in (("units", args.units, 2), ("copies", args.copies, 0), ("inner", args.inner, 1)):
        if value < low:
            raise RdError(f"--{name} {value} is below {low}")
    if args.fold and args.features != "heads":
        raise RdError("--fold is for --features heads", hint="a head on hidden features has nothing to fold")
    tuning = _finetuning(args)
    name = args.name or args.output.name.replace("-", "_").lower()
    layers = args.layers or DEFAULT_LAYERS.get(args.kind, "last")
    student = open_student(args.student, layers=layers, takes=args.features, device=device_named(args.device))
    request = HeadRequest(
        kind=args.kind,
        data=args.data,
        name=name,
        seed=args.seed,
        label=args.label,
        units=args.units,
        negatives=tuple(args.negatives),
        copies=args.copies,
        spot=SpotSettings(parts=args.parts, inner_width=args.inner),
        teacher=args.teacher,
        teacher_layer=args.teacher_layer,
        window_s=args.window,
        licence=args.licence,
    )
    trained = train_head(request, student, report=to_stderr)
    head, summary = trained.head, trained.summary
    if tuning is not None:
        head, summary = _finetuned(args, head, tuning)
    if args.fold:
        head = fold_projection(head, load_checkpoint(args.student if tuning is None else args.finetuned))
    folder = save_head(args.output, head, card=card_of(head))
    print(f"{folder}: {summary}")
    return 0


def _finetuning(args: argparse.Namespace) -> Finetuning | None:
    """The fine-tuning that is requested; raises RdError for half of it and for a student that would replace its own."""
    from reuse_distill.distill.files import check_writable
    from reuse_distill.distill.tasks.finetune import KINDS, Finetuning

    if args.finetune_layers is None and args.finetuned is None:
        return None
    if args.finetune_layers is None or args.finetuned is None:
        given, other = ("--finetuned", "--finetune-layers N")
        if args.finetuned is None:
            given, other = ("--finetune-layers", "--finetuned DIR, for the student that it changes")
        raise RdError(f"{given} is half of what fine-tuning needs", hint=f"add {other}")
    if args.kind not in KINDS:
        raise RdError(f"--finetune-layers is not for {args.kind}", hint=f"it is for {' and '.join(KINDS)}")
    if args.finetuned.resolve() == args.student.resolve():
        raise RdError(f"--finetuned {args.finetuned} is the student itself", hint="name another folder")
    if args.finetune_epochs < 1:
        raise RdError(f"--finetune-epochs {args.finetune_epochs} is below 1")
    check_writable(args.finetuned.parent)
    return Finetuning(args.finetune_layers, args.finetune_epochs, args.seed)


def _finetuned(args: argparse.Namespace, head: TaskHead, tuning: Finetuning) -> tuple[TaskHead, str]:
    """The head after fine-tuning, bound to the student that was written, and a line on what changed."""
    from reuse_distill.distill.evaluation.evaluate import Probe
    from reuse_distill.distill.tasks.finetune import finetune, save_finetuned

    probe = Probe("ctc" if args.kind == "ctc" else args.label, args.data)
    result = finetune(args.student, head, probe, tuning, report=to_stderr)
    bound = save_finetuned(args.finetuned, result, checkpoint=args.student, settings=tuning)
    measure = "letter_error_rate" if args.kind == "ctc" else "accuracy"
    was, now = (result.metrics[key]["value"] for key in (f"{measure}_frozen", measure))
    change = result.metrics["change_by_fine_tuning"]
    return bound, (
        f"{measure.replace('_', ' ')} {now:.3f}, frozen {was:.3f}: "
        f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]; student: {args.finetuned}"
    )
