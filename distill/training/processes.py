"""The processes of one run end together: none waits in a collective for one that has stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from reuse_distill.distill.data.damage import Damage
from reuse_distill.runtime.errors import RdError

T = TypeVar("T")


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


def share(fabric: Any, damages: Sequence[Damage]) -> None:
    """Tell every process what each has found damaged: a file counts once, whoever met it. All call it together.

    Raises RdError, the same in each of them, where that is more than the limit.
    """
    by_process = gathered(fabric, [[damage.found.copy() for damage in damages]])
    for number, damage in enumerate(damages):
        damage.know({index: skipped for own in by_process for index, skipped in own[number].items()})


def _lost_another(error: BaseException) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors that name its source files."""
    gloo = isinstance(error, RuntimeError) and "/gloo/" in str(error)
    return gloo or isinstance(error, torch.distributed.DistError)
