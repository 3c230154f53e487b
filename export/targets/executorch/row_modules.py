"""The captured modules as XNNPACK likes them: one stream, frames in rows, convolutions with channels last.

A graph of rows [F, E] and maps [H, F, S] has no batch axis to expand, so no operation in it only copies, and a number
of frames that is not known beforehand meets no special case. The functions are those of ``student``.

Shape legend: T samples, N exported layers, F frames, C channels, W feature width, E encoder width, H heads, D width of
a head, L cached frames, S keys, K taps of the positional convolution, R look-ahead.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from reuse_distill.export.capture.capture import Capture, CapturedStep
from reuse_distill.export.capture.simplify import FoldedHead, SingleHeads
from reuse_distill.export.capture.sliding_window import CapturedWindow, chunk_of
from reuse_distill.export.spec import WindowContext
from reuse_distill.export.targets.executorch.filter_bank_rows import FilterBankRows, fixed_conv
from reuse_distill.export.targets.executorch.row_positions import (
    PositionRows,
    distances,
    gated,
    in_two_dimensions,
    rows,
)
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student
from reuse_distill.student.attention import score_bias
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES
from reuse_distill.student.front_ends.filter_bank import FilterBankFrontEnd
from reuse_distill.student.front_ends.frontend import FeatureExtractor, TimeNorm, float_step_mask
from reuse_distill.student.front_ends.log_mel import HOP_BLOCKS, MEL_BINS, MelFrontEnd, in_blocks, log_of_floors
from reuse_distill.student.heads import filled, seen
from reuse_distill.student.layer import CachedAttention, HeadForm, run_layers
from reuse_distill.student.step import next_audio
from torch import Tensor, nn


def friendly(captured: Capture) -> nn.Module:
    """The same function as ``captured.module`` for one stream, in operations that XNNPACK takes.

    Raises RdError for another front end (Whisper's).
    """
    module = captured.module
    if captured.student.config.front_end not in ("conv", "mel", "fbank"):
        raise RdError(
            f"--target executorch has no front end {captured.student.config.front_end!r}, "
            "only convolutions over samples, the log-mel of our own students and MelHuBERT's filter bank",
            hint="use --target onnx",
        )
    if isinstance(module, CapturedWindow):
        return WindowRows(module.student, module.layers, module.features, module.window).eval()
    kind = StreamingRows if isinstance(module, CapturedStep) else OfflineRows
    return kind(module.student, module.layers, module.features).eval()


class FrontEnd(nn.Module):
    """[1, T] -> [F, C]: the convolution stack in two dimensions, the second of size 1."""

    def __init__(self, plain: FeatureExtractor) -> None:
        super().__init__()
        blocks = list(plain.conv_layers)
        self.convs = nn.ModuleList(in_two_dimensions(block[0]) for block in blocks)
        self.norms = nn.ModuleList(block[2] if len(block) == 4 else nn.Identity() for block in blocks)

    def forward(self, wave: Tensor, frame_valid: Tensor | None = None) -> Tensor:
        x = wave[:, None, :, None]  # [1, 1, T, 1]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.gelu(self._normed(norm, conv(x), frame_valid))
        return rows(x)

    def _normed(self, norm: nn.Module, x: Tensor, frame_valid: Tensor | None) -> Tensor:
        """[1, C, T, 1] -> [1, C, T, 1]."""
        if isinstance(norm, nn.Identity):
            return x
        if isinstance(norm, TimeNorm):
            return norm.masked(x, None if frame_valid is None else float_step_mask(frame_valid)[..., None])
        if hasattr(norm, "shift"):  # calibrated constants [C, 1]
            return x * norm.scale[..., None] + norm.shift[..., None]
        normed = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.weight, norm.bias, norm.eps)
        return normed.permute(0, 3, 1, 2)


class MelFrontEndRows(nn.Module):
    """[1, history + T] -> [F, C]: log-mel and the convolutions behind it in two dimensions, the second of size 1.

    ``any_length``, of utterances: forms whose number of frames torch can reason about while it is not known. The DFT
    reads the samples one by one, which is slower than blocks of 80, and of the ``history`` samples of silence before an
    utterance the windows that lie in them whole are put in as what they are, ``silent`` constant columns.
    """

    def __init__(self, plain: MelFrontEnd, *, any_length: bool, history: int) -> None:
        super().__init__()
        mel, self.any_length = plain.log_mel, any_length
        self.silent = (history - MEL_WINDOW_SAMPLES) // MEL_HOP_SAMPLES + 1 if any_length else 0
        waves, stride = (mel.cosines, mel.sines), HOP_BLOCKS
        if any_length:  # [199, 80, 5] -> [199, 1, 400]
            waves, stride = tuple(one.transpose(1, 2).flatten(1)[:, None] for one in waves), MEL_HOP_SAMPLES
        cosines, sines = (in_two_dimensions(fixed_conv(one, stride=stride)) for one in waves)
        filters = in_two_dimensions(fixed_conv(mel.filters))
        self.log_mel = nn.ModuleDict({"cosines": cosines, "sines": sines, "filters": filters})
        self.after_mel = nn.ModuleList(in_two_dimensions(block[0]) for block in plain.conv_layers)

    def forward(self, wave: Tensor, frame_valid: Tensor | None = None) -> Tensor:
        """A frame sees no sample after its own, so ``frame_valid`` changes nothing."""
        x = wave[:, None, :, None] if self.any_length else in_blocks(wave)[..., None]
        cosine, sine = self.log_mel["cosines"](x), self.log_mel["sines"](x)
        floors = self.log_mel["filters"](cosine * cosine + sine * sine)  # [1, 80, M, 1]
        if self.silent:
            floors = torch.cat([torch.zeros(1, MEL_BINS, self.silent, 1), floors], dim=2)
        x = log_of_floors(floors)
        for conv in self.after_mel:
            x = F.gelu(conv(x))
        return rows(x)


class StudentRows(nn.Module):
    """The parts of a student, and the path from frames to exported features."""

    def __init__(self, student: Student, numbers: Sequence[int], features: str) -> None:
        super().__init__()
        student = copy.deepcopy(student)
        self.config, self.numbers = student.config, tuple(numbers)
        front_end = student.feature_extractor
        if isinstance(front_end, FilterBankFrontEnd):
            front: nn.Module = FilterBankRows(front_end)
            self.silence = 0
        elif isinstance(front_end, MelFrontEnd):
            history, utterances = self.config.history_samples, isinstance(self, OfflineRows)
            front = MelFrontEndRows(front_end, any_length=utterances, history=history)
            self.silence = history - MEL_HOP_SAMPLES * front.silent
        else:
            front, self.silence = FrontEnd(front_end), 0
        self.front_end = front
        self.layer_norm, self.post_extract_proj = student.layer_norm, student.post_extract_proj
        self.position, self.relative = PositionRows(student), student.encoder.relative
        self.position_norm, self.layers = student.encoder.layer_norm, student.encoder.layers
        reduction = student.encoder.reduction
        self.reduction = None if reduction is None else in_two_dimensions(reduction)
        self.sources, self.heads = tuple(numbers), heads_of(student, numbers) if features == "heads" else None
        if features == "heads" and student.split_heads is not None:
            self.sources = (student.config.layers,) * len(self.numbers)

    def frames(self, wave: Tensor, frame_valid: Tensor | None = None, *, history: Tensor | None = None) -> Tensor:
        """[1, T] -> [F, E]; ``history`` as in ``Student.frames``."""
        if self.silence:
            wave = torch.cat([torch.zeros(1, self.silence) if history is None else history, wave], dim=1)
        x = self.front_end(wave, frame_valid)
        # Columns that no norm makes rows of: torch would make one frame special.
        x = self.layer_norm(x) if self.config.frame_norm else x.contiguous()
        return x if self.post_extract_proj is None else self.post_extract_proj(x)

    def positioned(self, x: Tensor, exists: Tensor | None) -> Tensor:
        """The frames ``x`` [F, E] of an utterance or window with their position; ``exists`` [1, F], None: all do."""
        return self.joined(x, self.position(x, exists))

    def joined(self, x: Tensor, position: Tensor) -> Tensor:
        """Norm of frames plus their position, [F, E] each; where layers norm first that norm is for the end."""
        return x + position if self.config.norm_first else self.position_norm(x + position)

    def into_layers(self, x: Tensor, exists: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What ``exported_layers.into_layers`` does: ``x`` [F, E] -> [S, E], and what is added to the scores [S]."""
        if self.reduction is None:
            return x, None if exists is None else score_bias(exists, x.dtype)[0]
        factor = self.config.time_reduction
        visible = seen(torch.ones(x.shape[0]) if exists is None else exists[0], factor)  # [S]
        whole = filled(x[None], factor, exists).transpose(1, 2)  # [1, E, F + k - 1]
        steps = rows(self.reduction(whole[..., None])).contiguous()  # of columns, torch would make one step special
        return steps, score_bias(visible, x.dtype)

    def encoded(self, x: Tensor, exists: Tensor | None) -> list[Tensor]:
        """What layer 1 sees and the output [S, E] of every layer for the frames ``x`` [F, E].

        ``exists`` [1, F] is 1 where a frame does; None: all do.
        """
        x, bias = self.into_layers(x, exists)
        added = gated(distances(self.relative, x), bias)
        hidden = run_layers(self.layers, x, CachedAttention(bias, form=ROWS, added=added))
        return [x, *hidden[:-1], self.position_norm(hidden[-1]) if self.config.norm_first else hidden[-1]]

    def chosen(self, hidden: Sequence[Tensor], frames: int | None) -> Tensor:
        """Exported features [1, N, F, W] of what ``encoded`` gives, or what the projection heads make of it."""
        factor, picked = self.config.time_reduction, [hidden[number] for number in self.sources]
        if self.heads is not None:
            picked = [head(x) for head, x in zip(self.heads, picked, strict=True)]
            picked = [x.unflatten(1, (factor, -1)) for x in picked] if factor > 1 else picked
        picked = picked if factor == 1 else [frames_of(x, factor, frames) for x in picked]
        return (picked[0][None] if len(picked) == 1 else torch.stack(picked))[None]


def frames_of(x: Tensor, factor: int, frames: int | None) -> Tensor:
    """[S, C] or, where a step has something for each of its frames, [S, k C] as [S, k, C] -> [F, C].

    Frames look their step up: torch cannot know that F <= k S, so a slice would make special cases of lengths. A window
    has whole steps, ``frames`` None.
    """
    if frames is None:
        return (x if x.ndim == 3 else x[:, None].expand(-1, factor, -1)).reshape(factor * x.shape[0], x.shape[-1])
    frame = torch.arange(frames)
    step = torch.div(frame, factor, rounding_mode="floor")
    return x.index_select(0, step) if x.ndim == 2 else x[step, torch.remainder(frame, factor)]


def heads_of(student: Student, numbers: Sequence[int]) -> nn.ModuleList:
    """The heads of ``numbers`` as parts that take rows [S, E]: [S, W], or [S, k W] where time is reduced."""
    if isinstance(student.split_heads, SingleHeads):
        return nn.ModuleList(student.split_heads[student.config.targets.index(n)] for n in numbers)
    assert student.proj_head is not None  # noqa: S101  (check_features has seen to it)
    chosen = [student.proj_head[n - 1] for n in numbers]
    return nn.ModuleList(head.lin_proj if isinstance(head, FoldedHead) else head for head in chosen)


class OfflineRows(StudentRows):
    """wave [1, T] -> features [1, N, F, W]."""

    def forward(self, wave: Tensor) -> Tensor:
        x = self.frames(wave)
        return self.chosen(self.encoded(self.positioned(x, None), None), x.shape[0])


class WindowRows(StudentRows):
    """(wave [1, 320 F + 80], frame_valid [1, F]) -> chunk features [1, N, chunk, W]."""

    def __init__(self, student: Student, numbers: Sequence[int], features: str, window: WindowContext) -> None:
        super().__init__(student, numbers, features)
        self.window = window

    def forward(self, wave: Tensor, frame_valid: Tensor) -> Tensor:
        x = self.frames(wave, frame_valid) * frame_valid.transpose(0, 1)
        hidden = self.encoded(self.positioned(x, frame_valid), frame_valid)
        return self.chosen(chunk_of(hidden, self.window, self.config.time_reduction), None)


class StreamingRows(StudentRows):
    """(samples, fresh, states…) -> (features [1, N, C, W], state outputs…), as ``student.step.step_rows``."""

    def forward(self, samples: Tensor, fresh: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        chunk, ahead = fresh.shape[1], self.config.lookahead_frames
        audio = states[-1] if self.config.history_samples else None
        rest = [state.squeeze(0) for state in (states if audio is None else states[:-1])]
        frames = self.frames(samples, history=audio)
        heard = torch.cat([rest.pop(0), frames * fresh.transpose(0, 1)])  # [K-1 + C, E]
        exists = torch.cat([rest.pop(0), fresh.squeeze(0)]) if ahead else fresh.squeeze(0)  # [R + C]
        first = self.config.position_kernel - 1 - ahead
        x = self.joined(heard[first : first + chunk], self.position.of_heard(heard))
        before = rest.pop(0) if rest else None  # [L] validity of the cached frames
        valid = exists[:chunk]
        bias = score_bias(valid if before is None else torch.cat([before, valid]), x.dtype)  # [L + C]
        first_value = len(rest) - len(self.layers)
        caches = (rest[:first_value], rest[first_value:]) if rest else (None, None)
        attend = CachedAttention(bias, *caches, form=ROWS)
        hidden = run_layers(self.layers, x, attend)
        new = [heard[chunk:], *([exists[chunk:]] if ahead else [])]
        new += [valid, *attend.new_keys, *attend.new_values] if before is not None else []
        heard_samples = () if audio is None else (next_audio(samples, audio),)
        return (self.chosen([x, *hidden], None), *(state[None] for state in new), *heard_samples)


def split(x: Tensor, heads: int) -> Tensor:
    """[F, H*D] -> [H, F, D]."""
    frames, width = x.shape
    return x.reshape(frames, heads, width // heads).transpose(0, 1)


def join(context: Tensor) -> Tensor:
    """[H, F, D] -> [F, H*D]."""
    heads, frames, size = context.shape  # both named, not -1: the number of frames is symbolic
    return context.transpose(0, 1).reshape(frames, heads * size)


ROWS = HeadForm(split, join, torch.bmm)
