"""How far each step of an iterative compression goes, and when a step has recovered (arXiv 2211.09949)."""

from __future__ import annotations

from collections.abc import Sequence

from reuse_distill.runtime.errors import RdError

# Sparsity after each of the study's 38 steps of weight pruning.
STUDY_LEVELS = (
    *(0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.675, 0.7),
    *(round(0.71 + 0.01 * step, 3) for step in range(21)),
    *(round(0.915 + 0.005 * step, 3) for step in range(8)),
)
MOST_STEPS = 1000


def check_ratio(ratio: float) -> float:
    """The share to remove; RdError where nothing or everything would go."""
    if not 0 < ratio < 1:  # nor NaN
        raise RdError(f"--ratio {ratio:g} is not above 0 and below 1", hint="the share of what is removed, such as 0.5")
    return ratio


def levels(ratio: float, schedule: str) -> tuple[float, ...]:
    """Shares removed after each step: ``study`` (its levels up to ``ratio``), or a number of equal steps.

    Raises RdError for a ratio that is not between 0 and 1 and a schedule that is neither.
    """
    check_ratio(ratio)
    if schedule == "study":
        return (*(level for level in STUDY_LEVELS if level < ratio), ratio)
    steps = int(schedule) if schedule.isascii() and schedule.isdigit() else 0
    if not 1 <= steps <= MOST_STEPS:
        raise RdError(f"--schedule {schedule} is no schedule", hint=f"study, or a number of steps 1..{MOST_STEPS}")
    return tuple(ratio * step / steps for step in range(1, steps + 1))


def levels_together(ratios: Sequence[float], schedule: str, *, methods: int) -> tuple[tuple[float, ...], ...]:
    """Of each step of the schedule, the share that each of ``methods`` has removed after it; one ratio is for all.

    Raises RdError as ``levels`` does, and where the ratios differ in their number of steps.
    """
    steps = [levels(ratio, schedule) for ratio in (list(ratios) * methods if len(ratios) == 1 else ratios)]
    if len({len(one) for one in steps}) > 1:
        raise RdError(f"--schedule {schedule} has another number of steps for each --ratio", hint="give a number")
    return tuple(zip(*steps, strict=True))


def has_settled(losses: Sequence[float], tolerance: float) -> bool:
    """Whether the last round of recovery lowered the loss by no more than ``tolerance`` of it."""
    return len(losses) > 1 and losses[-2] - losses[-1] <= tolerance * abs(losses[-2])


def never_settled(step: int, losses: Sequence[float], tolerance: float) -> RdError:
    """What is told of a step that still improves after all of its rounds."""
    return RdError(
        f"step {step} has not settled after {len(losses)} rounds: the loss still fell from {losses[-2]:.4g} to "
        f"{losses[-1]:.4g}, by more than {tolerance:g} of it",
        hint="raise --rounds or --recover, or --settle; --resume continues from here",
    )
