"""The shape of a student, as frozen data, and the published presets.

Sources: ARMHuBERT (arXiv 2305.11685) section 3 and the released configurations; STaR (arXiv 2312.09040).
"""

from __future__ import annotations

from dataclasses import dataclass

from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from reuse_distill.student.layer_shape import PARTS, LayerShape, check_layer_shapes, check_per_layer

ConvLayer = tuple[int, int, int]  # channels, kernel, stride

_SIZES = ("width", "ffn_width", "heads", "layers", "position_kernel", "position_groups", "position_layers")
_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "input_dropout")
_LARGEST_SIZE = 100_000  # far above any student: a larger number is a mistake in a file
REUSE_MODES = ("shared", "renormalised")
CONV_NORMS = ("group", "layer", "every")
FRONT_ENDS = ("conv", "mel", "whisper", "fbank")
MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES = 400, 160
POSITIONS = ("conv", "batch-norm", "stack", "absolute")
HEAD_KINDS = ("layerwise", "split")
_LARGEST_REDUCTION = 8
_LONGEST_FIELD_SAMPLES = 4000  # of a frame made of mel frames: a quarter of a second


def conv_stack(first: int, middle: int, width: int) -> tuple[ConvLayer, ...]:
    """The family's front end: stride 320, receptive field 400, ``width`` channels out."""
    head = ((first, 10, 5), (middle, 1, 1))
    return (*head, *((middle, 3, 2),) * 4, (width, 1, 1), *((width, 2, 2),) * 2)


def mel_stack(middle: int, width: int) -> tuple[ConvLayer, ...]:
    """Two convolutions over mel frames: 50 frames per second of 1040 samples each, 640 of them history."""
    return ((middle, 3, 1), (width, 3, 2))


def every_second(layers: int) -> tuple[int, ...]:
    """Layers 2, 4, …, as in the paper: each even layer takes the map of the odd one before it."""
    return tuple(range(2, layers + 1, 2))


@dataclass(frozen=True)
class ChunkContext:
    """Attention context of a chunked forward.

    Frame t belongs to chunk (t + R) // C; it sees its own chunk and the ``left_frames`` frames before it.
    """

    chunk_frames: int  # C
    left_frames: int  # L

    def __post_init__(self) -> None:
        if self.chunk_frames < 1 or self.left_frames < 0:
            raise RdError(
                f"chunk of {self.chunk_frames} frames with {self.left_frames} to the left is not possible",
                hint="the chunk needs at least 1 frame, the left context at least 0",
            )


@dataclass(frozen=True)
class ChunkSchedule:
    """Attention context of a chunked forward whose chunks have several sizes.

    The chunks follow each other from frame -R on, as steps of a stream do whose chunk size changes between steps; the
    last size continues until the end of the audio.
    """

    chunks: tuple[int, ...]  # C of the first step, of the second one, ...
    left_frames: int  # L

    def __post_init__(self) -> None:
        if not self.chunks:
            raise RdError("a schedule of chunks needs at least one size")
        for chunk in self.chunks:
            ChunkContext(chunk, self.left_frames)


@dataclass(frozen=True)
class StudentConfig:
    """Everything that determines a student's parameters and its arithmetic."""

    conv_layers: tuple[ConvLayer, ...]  # over samples, or over mel frames where front_end is mel
    width: int  # C: channels of the encoder
    ffn_width: int
    heads: int
    layers: int
    reuse_layers: tuple[int, ...] = ()  # 1-based; each takes the map of the last computing layer before it
    reuse_mode: str = "shared"  # shared: the map itself | renormalised: softmax of the map (released checkpoints)
    # group: over all time after conv 0 (published) | layer: per frame after conv 0 | every: per frame after each conv
    conv_norm: str = "group"
    conv_bias: bool = False
    project_input: bool = False  # a projection into the encoder even where the widths are the same
    # conv: one with weight norm | batch-norm: a norm before it | stack: several (data2vec) | absolute: added (Whisper)
    position: str = "conv"
    position_layers: int = 1  # convolutions of a stack
    position_kernel: int = 128
    position_groups: int = 16
    relative_buckets: int = 0  # of the gated relative position bias (WavLM); 0: none
    relative_distance: int = 800  # from which on all distances share a bucket
    norm_first: bool = False  # norms before attention and feed-forward block, and one after the last layer
    final_norm: bool = True  # norm_first: the norm after the last layer; an encoder cut short has none
    norm_eps: float = 1e-5  # of all layer norms but those of the convolutions
    normalise_input: float | None = None  # zero mean and unit variance per utterance, with this added to the variance
    lookahead_frames: int = 63  # R of the positional convolution; 63 as published
    head_width: int | None = 768  # teacher width of the heads; None: no heads
    head_kind: str = "layerwise"  # layerwise: a linear head per layer | split: several on the last layer (DistilHuBERT)
    head_targets: tuple[int, ...] = ()  # split: the teacher's layers that the heads predict, from 1
    frame_norm: bool = True  # norm of the front end's frames before they are projected (DistilHuBERT has none)
    time_reduction: int = 1  # frames that the layers see as one step; the heads undo it (FitHuBERT: 2)
    mask_embedding: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    input_dropout: float = 0.05
    context: ChunkContext | None = None  # the context it is meant to be exported with; None: full
    # conv: convolutions over samples (published) | mel: log-mel, then causal convolutions | whisper: Whisper's own |
    # fbank: Kaldi's filter bank and nothing learned (MelHuBERT); conv_layers says how many frames stand side by side
    front_end: str = "conv"
    mel_bands: int = 80  # whisper: 128 in large-v3
    window_frames: int = 0  # whisper: frames that it always sees, silence after shorter audio; 0: those there are
    # Of compressed students, one entry per layer; empty: all layers alike.
    layer_heads: tuple[int, ...] = ()  # heads that are left; each still has the width of one of ``heads``
    layer_ffn_widths: tuple[int, ...] = ()
    layer_ranks: tuple[tuple[int, ...], ...] = ()  # of q, k, v, out, fc1 and fc2 as two factors; 0: one matrix

    def __post_init__(self) -> None:
        for name in _SIZES:
            _check_size(name, getattr(self, name))
        if self.head_width is not None:
            _check_size("head_width", self.head_width)
        for name in _DROPOUTS:
            if not 0 <= getattr(self, name) <= 1:
                raise RdError(f"{name} {getattr(self, name)} is outside 0..1")
        _check_member("front_end", self.front_end, FRONT_ENDS)
        _check_frame_rate(self.conv_layers, self.front_end)
        _check_member("reuse_mode", self.reuse_mode, REUSE_MODES)
        _check_member("conv_norm", self.conv_norm, CONV_NORMS)
        _check_member("position", self.position, POSITIONS)
        _check_norms(self)
        _check_whisper(self)
        _check_member("head_kind", self.head_kind, HEAD_KINDS)
        if self.front_end in ("mel", "fbank") and self.conv_norm != "layer":
            raise RdError(
                f"front_end {self.front_end!r} with conv_norm {self.conv_norm!r}",
                hint="log-mel has no norm over the utterance: set conv_norm to layer",
            )
        if self.front_end == "fbank" and self.conv_layers[0][0] != self.mel_bands * self.conv_layers[0][1]:
            raise RdError(
                f"frames of {self.conv_layers[0][0]} numbers, {self.conv_layers[0][1]} times {self.mel_bands} bands "
                f"give {self.mel_bands * self.conv_layers[0][1]}"
            )
        _check_heads(self)
        if not 1 <= self.time_reduction <= _LARGEST_REDUCTION:
            raise RdError(f"time_reduction {self.time_reduction} is outside 1..{_LARGEST_REDUCTION}")
        if self.time_reduction > 1 and self.context is not None:
            raise RdError(
                f"a context of {self.context.chunk_frames} frames with time_reduction {self.time_reduction}",
                hint="a student that reduces time has no streaming step: leave context out",
            )
        if self.width % self.heads:
            raise RdError(f"width {self.width} is not a multiple of the {self.heads} heads")
        if self.width % self.position_groups:
            raise RdError(f"width {self.width} is not a multiple of position_groups {self.position_groups}")
        if not 0 <= self.lookahead_frames < self.position_kernel:
            raise RdError(
                f"lookahead_frames {self.lookahead_frames} is outside 0..{self.position_kernel - 1}",
                hint="the look-ahead is part of the positional convolution's kernel",
            )
        outside = [layer for layer in self.reuse_layers if not 2 <= layer <= self.layers]
        if outside:
            raise RdError(
                f"reuse_layers {outside} are outside 2..{self.layers}",
                hint="the first layer has no map to take: it always computes its own",
            )
        _check_layers(self)

    @property
    def history_samples(self) -> int:
        """Samples before its own 400 that a frame sees; before the start of an utterance they are digital silence."""
        if self.front_end in ("whisper", "fbank"):  # mirrors the beginning instead; sees what follows instead
            return 0
        return field_and_hop(self.conv_layers, self.front_end)[0] - RECEPTIVE_FIELD_SAMPLES

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next: 320, or 160 of a MelHuBERT with frames of 10 ms."""
        return field_and_hop(self.conv_layers, self.front_end)[1]

    @property
    def streamable(self) -> bool:
        """True where a step can equal the offline forward: per-frame norm in the front end, a step per frame."""
        return self.conv_norm != "group" and self.time_reduction == 1 and self.position == "conv" and not self.foreign

    @property
    def foreign(self) -> bool:
        """True where only encoders of other libraries compute so: their weights know the whole utterance."""
        whole = self.relative_buckets or self.conv_norm == "every" or self.window_frames or self.front_end == "fbank"
        return bool(whole or self.normalise_input is not None)

    @property
    def projects_input(self) -> bool:
        """Whether frames of the front end are projected to the width of the encoder."""
        return self.project_input or self.conv_layers[-1][0] != self.width

    @property
    def targets(self) -> tuple[int, ...]:
        """The teacher's layers, from 1, that the heads (or, without heads, the layers) stand for."""
        return self.head_targets if self.head_kind == "split" else tuple(range(1, self.layers + 1))

    @property
    def head_dim(self) -> int:
        """D: width of one attention head."""
        return self.width // self.heads

    def shape_of(self, layer: int) -> LayerShape:
        """Heads, feed-forward width and ranks of the 1-based ``layer``."""
        return LayerShape(
            width=self.width,
            head_dim=self.head_dim,
            heads=self.layer_heads[layer - 1] if self.layer_heads else self.heads,
            ffn_width=self.layer_ffn_widths[layer - 1] if self.layer_ffn_widths else self.ffn_width,
            computes=not self.reuses(layer),
            ranks=self.layer_ranks[layer - 1] if self.layer_ranks else (0,) * len(PARTS),
        )

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]:
        """``shape_of`` every layer."""
        return tuple(self.shape_of(number) for number in range(1, self.layers + 1))

    def reuses(self, layer: int) -> bool:
        """Whether the 1-based ``layer`` takes the map of a layer before it."""
        return layer in self.reuse_layers

    def map_source(self, layer: int) -> int:
        """The 1-based layer whose map ``layer`` uses (itself where it computes one)."""
        return max(number for number in range(1, layer + 1) if not self.reuses(number))


def _check_member(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RdError(f"{name} {value!r} is unknown", hint=nearest(value, known))


def _check_whisper(config: StudentConfig) -> None:
    parts = (config.front_end == "whisper", config.position == "absolute", config.window_frames > 0)
    if any(parts) and not (all(parts) and config.norm_first and not config.reuse_layers and config.head_width is None):
        raise RdError(
            f"front_end {config.front_end!r}, position {config.position!r} and window_frames {config.window_frames}",
            hint="Whisper has whisper, absolute and 1500, norm_first, no heads and no reuse; others none of the three",
        )
    if config.window_frames:
        _check_size("window_frames", config.window_frames)
        _check_size("mel_bands", config.mel_bands)


def _check_layers(config: StudentConfig) -> None:
    for name in ("layer_heads", "layer_ffn_widths", "layer_ranks"):
        check_per_layer(name, getattr(config, name), config.layers)
    check_layer_shapes(config.layer_shapes, most_heads=config.heads)
    if not config.layer_heads:
        return
    if config.relative_buckets:
        raise RdError("layer_heads with relative positions", hint="WavLM's table of positions is one for all layers")
    for layer in config.reuse_layers:
        own, source = (config.layer_heads[number - 1] for number in (layer, config.map_source(layer)))
        if own != source:
            raise RdError(
                f"layer {layer} has {own} heads and reuses the maps of layer {config.map_source(layer)}, which has "
                f"{source}",
                hint="a head is removed from the computing layer and from all that reuse its map together",
            )


def _check_norms(config: StudentConfig) -> None:
    for name, value in (("norm_eps", config.norm_eps), ("normalise_input", config.normalise_input)):
        if value is not None and not 0 < value <= 1:
            raise RdError(f"{name} {value} is outside 0..1", hint="it is added to a variance: 1e-5 is usual")
    buckets = config.relative_buckets
    if buckets and (buckets < 4 or not buckets // 4 < config.relative_distance <= _LARGEST_SIZE):
        raise RdError(
            f"{buckets} buckets for distances up to {config.relative_distance} are not possible",
            hint="4 or more buckets, and a distance above a quarter of them (WavLM: 320 and 800)",
        )


def _check_heads(config: StudentConfig) -> None:
    targets = config.head_targets
    if (config.head_kind == "split") != bool(targets) or (targets and config.head_width is None):
        raise RdError(
            f"head_kind {config.head_kind!r} with head_targets {list(targets)} and head_width {config.head_width}",
            hint="head_kind: split needs head_width and head_targets such as [4, 8, 12]; layerwise takes no targets",
        )
    if list(targets) != sorted({*targets}) or min(targets, default=1) < 1:
        raise RdError(f"head_targets {list(targets)} are not layers in order", hint="such as [4, 8, 12]")


def _check_size(name: str, value: int) -> None:
    if not 1 <= value <= _LARGEST_SIZE:
        raise RdError(f"{name} {value} is outside 1..{_LARGEST_SIZE}")


def field_and_hop(conv_layers: tuple[ConvLayer, ...], front_end: str) -> tuple[int, int]:
    """Samples that a frame is made of, and samples from one frame to the next."""
    field, hop = (1, 1) if front_end == "conv" else (MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES)
    for _, kernel, stride in conv_layers:
        field += (kernel - 1) * hop
        hop *= stride
    return field, hop


def _check_frame_rate(conv_layers: tuple[ConvLayer, ...], front_end: str) -> None:
    for layer in conv_layers:
        if len(layer) != 3:
            raise RdError(f"conv layer {layer} is not (channels, kernel, stride)")
        channels, kernel, stride = layer
        if not 1 <= min(layer) <= max(layer) <= _LARGEST_SIZE:
            raise RdError(f"conv layer ({channels}, {kernel}, {stride}) has a value outside 1..{_LARGEST_SIZE}")
    field, hop = field_and_hop(conv_layers, front_end)
    if front_end == "fbank":
        if len(conv_layers) != 1 or conv_layers[0][1] != conv_layers[0][2] or hop not in (MEL_HOP_SAMPLES, HOP_SAMPLES):
            raise RdError(
                f"conv layers {list(conv_layers)} with front_end 'fbank'",
                hint="one entry of frames side by side: (80, 2, 2) for 20 ms, (40, 1, 1) for 10 ms",
            )
    elif front_end != "conv":
        if hop != HOP_SAMPLES or field > _LONGEST_FIELD_SAMPLES:
            raise RdError(
                f"conv layers over mel frames have stride {hop} and receptive field {field} samples, frames have a "
                f"stride of {HOP_SAMPLES} and at most {_LONGEST_FIELD_SAMPLES} samples",
                hint="use student.config.mel_stack(middle, width)",
            )
    elif (hop, field) != (HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES):
        raise RdError(
            f"conv layers have stride {hop} and receptive field {field} samples, "
            f"the frames of this family have {HOP_SAMPLES} and {RECEPTIVE_FIELD_SAMPLES}",
            hint="use student.config.conv_stack(first, middle, width)",
        )
