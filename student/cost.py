"""What a student costs: multiply-accumulates by part, and bytes of weights.

Convention: one MAC per product of a convolution, a linear layer or an attention product (Q K^T and P V); norms,
softmax, GELU and biases are not counted. The published GMACs (ARMHuBERT, MaskHuBERT and STaR papers: the sum over
32 utterances, 224.86 s) follow this convention with all twelve heads counted. The lengths of those utterances are not
published, and the attention products depend on them: with one length for all, 499 frames (10 s) to attend to, the
five published figures are met within 0.2 %.
"""

from __future__ import annotations

import torch
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ, samples_for
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES, StudentConfig
from reuse_distill.student.layer_shape import ATTENTION_PARTS
from reuse_distill.student.whisper import build_student

SUPERB_SECONDS, SUPERB_UTTERANCES, SUPERB_ATTENDED = 224.86, 32, 499
FILTER_BANK_BINS = 256  # of Kaldi's spectrum


def macs(config: StudentConfig, frames: int, *, attended: int | None = None) -> dict[str, int]:
    """MACs of ``frames`` frames, by part.

    attended: keys that each query sees; None: all ``frames`` (one utterance, full context), L + C for a stream. Only
    the attention products depend on it. Parts: mel (DFT and filters) for students with a log-mel front end, conv,
    input_projection, position, projections (Q, K, V and output), attention, ffn, heads, and reduction for students
    that reduce time.
    """
    width, factor, shapes = config.width, config.time_reduction, config.layer_shapes
    frames = config.window_frames or frames  # Whisper always computes its whole window
    out_channels = config.conv_layers[-1][0]
    steps = -(-frames // factor)
    keys = steps if attended is None else -(-attended // factor)
    per_frame = {
        "input_projection": out_channels * width if config.projects_input else 0,
        "position": 0 if config.position == "absolute" else _position_macs(config),
        "heads": _head_macs(config),
    }
    per_step = {
        "projections": sum(shape.weights(*ATTENTION_PARTS) for shape in shapes),
        "attention": sum((1 + shape.computes) * shape.attention_width * keys for shape in shapes),
        "ffn": sum(shape.weights("fc1", "fc2") for shape in shapes),
    }
    if factor > 1:  # and the heads upsample
        upsamplers = config.layers if config.head_width is not None else 0
        per_step["reduction"] = (1 + upsamplers) * factor * width * width
    if config.relative_buckets:
        per_step["gates"] = sum(shape.computes for shape in shapes) * 2 * width
    return {
        **({"mel": _mel_macs(config, frames)} if config.front_end != "conv" else {}),
        "conv": _conv_macs(config, frames),
        **{part: count * frames for part, count in per_frame.items()},
        **{part: count * steps for part, count in per_step.items()},
    }


def superb_macs(config: StudentConfig) -> float:
    """MACs as SUPERB counts them: the sum over its 32 utterances, 224.86 s.

    Their lengths are not published. Only the attention products depend on them, and only by the sum of squares over the
    sum: ``SUPERB_ATTENDED``, the one number that meets all published figures. DistilHuBERT's figure is without heads.
    """
    frames = round((SUPERB_SECONDS * SAMPLE_RATE_HZ - 80 * SUPERB_UTTERANCES) / HOP_SAMPLES - SUPERB_UTTERANCES / 2)
    return float(sum(macs(config, frames, attended=SUPERB_ATTENDED).values()))


def macs_per_second(config: StudentConfig, *, seconds: float, attended: int | None = None) -> dict[str, float]:
    """MACs per second of audio, by part, of an utterance of ``seconds``."""
    hop_s = config.hop_samples / SAMPLE_RATE_HZ
    frames = max(1, round(seconds / hop_s))
    return {part: count / (frames * hop_s) for part, count in macs(config, frames, attended=attended).items()}


def weight_bytes(config: StudentConfig, *, bits: int = 32) -> int:
    """Bytes of the weights that an artifact holds: weight norm folded, no mask embedding; ``bits`` per value.

    Those of the log-mel are floats in every artifact.
    """
    with torch.device("meta"):
        state = build_student(config).state_dict()
    dropped = ("mask_emb", "encoder.pos_conv.0.weight_g")
    fixed = 4 * _mel_weights(config) if config.front_end != "conv" else 0
    return sum(value.numel() for key, value in state.items() if key not in dropped) * bits // 8 + fixed


def _head_macs(config: StudentConfig) -> int:
    """MACs of all heads per frame."""
    if config.head_width is None:
        return 0
    hidden = config.width**2 if config.head_kind == "split" else 0
    return len(config.targets) * (hidden + config.width * config.head_width)


def _position_macs(config: StudentConfig) -> int:
    """MACs of the positional convolutions per frame."""
    return config.position_layers * config.width * (config.width // config.position_groups) * config.position_kernel


def _conv_macs(config: StudentConfig, frames: int) -> int:
    total, steps, before = 0, samples_for(frames), 1
    if config.front_end == "fbank":  # frames side by side
        return 0
    if config.front_end != "conv":
        steps, before = _mel_frames(config, frames), config.mel_bands
    for channels, kernel, stride in config.conv_layers:
        steps = steps // stride if config.front_end == "whisper" else (steps - kernel) // stride + 1
        total += steps * before * channels * kernel
        before = channels
    return total


def _mel_macs(config: StudentConfig, frames: int) -> int:
    """Of the log-mel front end's DFT and filters."""
    return _mel_frames(config, frames) * _mel_weights(config)


def _mel_frames(config: StudentConfig, frames: int) -> int:
    """Frames of 10 ms; Whisper pads its convolutions, our own take the history before."""
    if config.front_end == "whisper":
        return frames * HOP_SAMPLES // MEL_HOP_SAMPLES
    if config.front_end == "fbank":
        return frames * config.hop_samples // MEL_HOP_SAMPLES
    return (samples_for(frames) + config.history_samples - MEL_WINDOW_SAMPLES) // MEL_HOP_SAMPLES + 1


def _mel_weights(config: StudentConfig) -> int:
    """Of two kernels per bin of the DFT, and of the filters over those."""
    bins = FILTER_BANK_BINS if config.front_end == "fbank" else MEL_WINDOW_SAMPLES // 2 - 1
    return 2 * bins * MEL_WINDOW_SAMPLES + bins * config.mel_bands
