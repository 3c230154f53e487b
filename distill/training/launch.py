"""Processes and devices: Lightning Fabric with its strategy and precision, and parameters as the strategy wants them.

``ddp`` copies the student to every process. ``fsdp`` spreads parameters, gradients and the optimiser's state over them,
one Transformer layer at a time (FSDP2, by Fabric's ModelParallelStrategy). The teacher is in every process.

The processes of one run end together: none waits in a collective for one that has stopped.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from reuse_distill.distill.data.utterances import DamagedFiles
from reuse_distill.distill.recipe import TrainingRecipe
from reuse_distill.runtime.errors import RdError, install_hint, nearest
from torch import Tensor, nn

STRATEGIES = ("auto", "ddp", "fsdp")
T = TypeVar("T")


@dataclass(frozen=True)
class RunSettings:
    """Where a run reads, writes and computes. ``devices`` and ``nodes`` above 1 train with ``strategy``."""

    teacher: Path | str | None  # folder, file, or torchaudio:BUNDLE; None: only its targets are at hand
    data: Path | str
    output: Path
    resume: bool = False
    device: str = "auto"  # auto | cpu | cuda
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"  # auto: ddp with several processes | ddp | fsdp
    compile: bool = False  # torch.compile of the student
    validation: str | None = None  # audio to validate on, or the share of the data that is held out for it
    init: Path | None = None  # checkpoint folder to start from; None: initial weights
    tensorboard: bool = False  # event files beside metrics.csv
    targets: Path | None = None  # of rd-distill targets: the teacher's layers, made before
    keep_zeros: bool = False  # weights that ``init`` has as zeros stay zeros: it was pruned
    gates: str | None = None  # gates | pinch: train gates on ``init``; the run's student is what they leave
    remove: float = 0.0  # gates: share of the parameters that they have to remove
    stop_after: int | None = None  # end this session after so many steps of the run, to be resumed


def device_of(settings: RunSettings) -> torch.device:
    """The kind of device that a run computes on; raises RdError where CUDA is requested and is not there."""
    device = device_named(settings.device)
    if settings.devices < 1 or settings.nodes < 1:
        raise RdError(f"--devices {settings.devices} --nodes {settings.nodes}", hint="each is at least 1")
    if device.type == "cuda" and settings.devices > torch.cuda.device_count():
        raise RdError(
            f"--devices {settings.devices}, but this host has {torch.cuda.device_count()} CUDA devices",
            hint="several hosts: --nodes, and as many --devices as each of them has",
        )
    return device


def device_named(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises RdError where CUDA is requested and is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RdError("--device cuda, but torch sees no CUDA device", hint="--device cpu, or install torch with CUDA")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def launch(recipe: TrainingRecipe, settings: RunSettings, device: torch.device) -> Any:
    """Fabric with its processes started; raises RdError without lightning-fabric."""
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise RdError("lightning-fabric is not installed", hint=install_hint("distill")) from None
    fabric = Fabric(
        accelerator=device.type,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=_strategy(recipe, settings),
        precision=precision_of(recipe, device),
    )
    if settings.nodes > 1 and not _one_of_several_hosts(fabric):
        raise RdError(
            f"--nodes {settings.nodes}, but nothing says which of the hosts this is: it would wait for the others",
            hint="start it on every host with torchrun or srun (docs/distillation.md), or set NODE_RANK, MASTER_ADDR",
        )
    fabric.launch()
    return fabric


def _one_of_several_hosts(fabric: Any) -> bool:
    """Whether torchrun, SLURM or another launcher, or the user by hand, has told this process its place."""
    environment = fabric.strategy.cluster_environment
    return environment.creates_processes_externally or not {"NODE_RANK", "GROUP_RANK"}.isdisjoint(os.environ)


def precision_of(recipe: TrainingRecipe, device: torch.device) -> Any:
    """Fabric's name of the precision; ``auto`` is bf16-mixed on CUDA and 32-true elsewhere."""
    precision = recipe.training.precision
    if precision == "16-mixed" and device.type != "cuda":
        raise RdError(f"precision 16-mixed on {device.type}", hint="use bf16-mixed or 32-true here")
    if precision != "auto":
        return precision
    return "bf16-mixed" if device.type == "cuda" else "32-true"


def is_sharded(fabric: Any) -> bool:
    """Whether no process holds all parameters."""
    from lightning_fabric.strategies import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def place(fabric: Any, model: nn.Module, make_optimiser: Any) -> tuple[Any, Any]:
    """(model, optimiser) on their devices, in the strategy's hands. ``make_optimiser(parameters)`` makes it."""
    if is_sharded(fabric):  # the parameters are other tensors afterwards: the optimiser has to take those
        placed = fabric.setup_module(model)
        return placed, fabric.setup_optimizers(make_optimiser(placed.parameters()))
    return fabric.setup(model, make_optimiser(model.parameters()))


def model_state(fabric: Any, model: nn.Module) -> dict[str, Tensor]:
    """All parameters on the CPU. Sharded: every process has to call it, and only the first gets them."""
    if not is_sharded(fabric):
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return dict(get_model_state_dict(model, options=_whole()))


def optimiser_state(fabric: Any, model: nn.Module, optimiser: Any) -> dict[str, Any]:
    """The optimiser's state; as ``model_state``."""
    if not is_sharded(fabric):
        return optimiser.state_dict()
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimiser.optimizer, options=_whole())


def load_optimiser_state(fabric: Any, model: nn.Module, optimiser: Any, saved: dict[str, Any]) -> None:
    """Give ``optimiser`` what ``optimiser_state`` returned. Raises RdError where another strategy saved it."""
    if not is_sharded(fabric):
        if any(isinstance(key, str) for key in saved["state"]):
            raise RdError("this run was started with --strategy fsdp", hint="resume it with --strategy fsdp")
        optimiser.load_state_dict(saved)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    if any(isinstance(key, int) for key in saved["state"]):
        raise RdError("this run was not started with --strategy fsdp", hint="resume it without --strategy fsdp")
    # A parameter that no loss has reached yet has no state: not strict.
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(model, optimiser.optimizer, saved, options=options)


def _strategy(recipe: TrainingRecipe, settings: RunSettings) -> Any:
    processes = settings.devices * settings.nodes
    if settings.strategy not in STRATEGIES:
        raise RdError(f"--strategy {settings.strategy!r} is unknown", hint=nearest(settings.strategy, STRATEGIES))
    if settings.strategy == "fsdp":
        if recipe.training.fake_quant:
            raise RdError("quantisation-aware training does not shard", hint="--strategy ddp")
        if recipe.training.precision == "16-mixed":
            raise RdError("precision 16-mixed does not shard", hint="--precision bf16")
        from lightning_fabric.strategies import ModelParallelStrategy

        return ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1)
    if processes == 1 and settings.strategy != "ddp":
        return "auto"
    return "ddp" if reaches_every_parameter(recipe) else "ddp_find_unused_parameters_true"


def reaches_every_parameter(recipe: TrainingRecipe) -> bool:
    """Whether every step gives every parameter a gradient, so that DDP need not look for those without.

    Not where hint layers are drawn, and not without masks: the mask embedding is left out, and with STaR the heads.
    """
    whole = recipe.student.config().time_reduction == 1  # a reducing student has an upsampler that nothing uses
    return "masking" in recipe.loss.weights and recipe.loss.hint_layers is None and whole


def _shard(model: Any, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    # Heads return views, which torch says must not be changed in place: nothing of the output is.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    for layer in model.encoder.layers:
        fully_shard(layer, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


@contextmanager
def together(fabric: Any) -> Iterator[None]:
    """What stops this process ends those that it started; that another one stopped is an RdError."""
    try:
        yield
    except BaseException as error:
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.kill()  # no milder signal reaches a process in a collective
        if fabric.world_size > 1 and _lost_another(error):
            raise RdError("another process of this run has stopped", hint="its own message says why") from None
        raise


def in_first(fabric: Any, action: Callable[[], None]) -> None:
    """Do ``action`` in the first process only; the RdError that it raises is raised in every process."""
    error: RdError | None = None
    if fabric.global_rank == 0:
        try:
            action()
        except RdError as raised:
            error = raised
    if fabric.world_size > 1:
        error = fabric.broadcast(error)
    if error is not None:
        raise error


def gathered(fabric: Any, own: list[T]) -> list[T]:
    """What the processes have, one after the other, in each of them."""
    if fabric.world_size == 1:
        return own
    by_process: list[list[T]] = [[]] * fabric.world_size
    torch.distributed.all_gather_object(by_process, own)
    return [item for items in by_process for item in items]


def share(fabric: Any, sources: Sequence[DamagedFiles]) -> None:
    """Tell every process what each has found damaged: a file counts once, whoever met it. All call it together.

    Raises RdError, the same in each of them, where that is more than the limit.
    """
    by_process = gathered(fabric, [[source.skipped.copy() for source in sources]])
    for number, source in enumerate(sources):
        source.share({index: skipped for own in by_process for index, skipped in own[number].items()})


def _lost_another(error: BaseException) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors that name its source files."""
    gloo = isinstance(error, RuntimeError) and "/gloo/" in str(error)
    return gloo or isinstance(error, torch.distributed.DistError)
