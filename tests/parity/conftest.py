"""An independent forward of the student in NumPy, float64, one utterance at a time.

Written from the equations of the papers (ARMHuBERT section 3.1, HuBERT's front end and post-LN encoder), not from
``student/``: sums over explicit indices, no torch. It defines what a padded batch has to give as well, since an
utterance in a batch must equal itself alone.

Shapes: T samples, F frames, C channels, H heads, D width of a head, W width of the projection heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

Array = np.ndarray
EPS = 1e-5

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x."""
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def standardised(x: Array, axis: int) -> Array:
    mean = x.mean(axis, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis, keepdims=True) + EPS)


def softmax_over(allowed: Array, scores: Array) -> Array:
    """exp(score) / sum of exp over the allowed keys; exactly 0 elsewhere. [F, F]."""
    out = np.zeros_like(scores)
    for t, row in enumerate(scores):
        keys = np.flatnonzero(allowed[t])
        weights = np.exp(row[keys] - row[keys].max())
        out[t, keys] = weights / weights.sum()
    return out


class Weights:
    """The public parameter names, as float64 arrays."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = {key: np.asarray(value, dtype=np.float64) for key, value in state.items()}

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def __getitem__(self, key: str) -> Array:
        return self.state[key]

    def linear(self, name: str, x: Array) -> Array:
        """y_o = sum_i W_oi x_i + b_o."""
        return np.einsum("oi,fi->fo", self[f"{name}.weight"], x) + self[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        return standardised(x, -1) * self[f"{name}.weight"] + self[f"{name}.bias"]


def convolution(x: Array, kernel: Array, stride: int) -> Array:
    """y[o, t] = sum_{i,k} w[o, i, k] x[i, stride t + k]; x [I, T], kernel [O, I, K]."""
    taps = kernel.shape[2]
    steps = (x.shape[1] - taps) // stride + 1
    out = np.zeros((kernel.shape[0], steps))
    for k in range(taps):
        out += kernel[:, :, k] @ x[:, k : k + stride * (steps - 1) + 1 : stride]
    return out


def front_end(w: Weights, config: Any, wave: Array) -> Array:
    """[T] -> [C, F]."""
    if config.front_end == "mel":
        return mel_front_end(w, config, wave)
    x = wave[None, :]
    for index, (_, _, stride) in enumerate(config.conv_layers):
        x = convolution(x, w[f"feature_extractor.conv_layers.{index}.0.weight"], stride)
        if index == 0:
            x = standardised(x, 1 if config.conv_norm == "group" else 0)  # over time | over channels
            name = "feature_extractor.conv_layers.0.2"
            x = x * w[f"{name}.weight"][:, None] + w[f"{name}.bias"][:, None]
        x = gelu(x)
    return x


def mel_front_end(w: Weights, config: Any, wave: Array) -> Array:
    """[T] -> [C, F]: NumPy's own DFT of every window of the wave after 640 zeros."""
    wave = np.concatenate([np.zeros(640), wave])
    starts = range(0, len(wave) - 399, 160)
    windows = np.stack([wave[s : s + 400] for s in starts]) * np.hanning(401)[:400]
    power = np.abs(np.fft.rfft(windows)) ** 2  # [M, 201]
    mel_points = np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), 82)
    edges = [200 / 3 * m if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in mel_points]
    bands = []
    for low, peak, high in zip(edges, edges[1:], edges[2:], strict=False):
        bands.append(np.interp(np.arange(201) * 40.0, [low, peak, high], [0, 2 / (high - low), 0], left=0, right=0))
    x = (np.log10(power @ np.array(bands).T + 1e-9).T + 5) / 4
    for index, (_, _, stride) in enumerate(config.conv_layers):
        name = f"feature_extractor.conv_layers.{index}.0"
        x = gelu(convolution(x, w[f"{name}.weight"], stride) + w[f"{name}.bias"][:, None])
    return x


def position(w: Weights, config: Any, x: Array) -> Array:
    """Frame t sees t - (K-1-R) ... t + R, zeros outside; each output channel its own group of inputs. [F, C]."""
    frames, width = x.shape
    taps, ahead = config.position_kernel, config.lookahead_frames
    v, gain = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"]
    group = width // config.position_groups
    out = np.tile(w["encoder.pos_conv.0.bias"], (frames, 1))
    for k in range(taps):
        kernel = v[:, :, k] * gain[0, 0, k] / math.sqrt((v[:, :, k] ** 2).sum())  # [C, C / groups]
        offset = k - (taps - 1 - ahead)
        for t in range(max(0, -offset), min(frames, frames - offset)):
            for g in range(config.position_groups):
                channels = slice(g * group, (g + 1) * group)
                out[t, channels] += kernel[channels] @ x[t + offset, channels]
    return gelu(out)


def visible_keys(frames: int, chunk: int, left: int, ahead: int) -> Array:
    """[F, F]: the keys of the query's own chunk, and ``left`` keys before the chunk starts."""
    allowed = np.zeros((frames, frames), dtype=bool)
    for t in range(frames):
        mine = (t + ahead) // chunk
        for s in range(frames):
            start = mine * chunk - ahead
            allowed[t, s] = (s + ahead) // chunk == mine or start - left <= s < start
    return allowed


def attention_maps(w: Weights, name: str, heads: int, x: Array, allowed: Array) -> list[Array]:
    """Per head softmax(Q K^T / sqrt(D)) [F, F]."""
    queries, keys = w.linear(f"{name}.q_proj", x), w.linear(f"{name}.k_proj", x)
    depth = x.shape[1] // heads
    maps = []
    for h in range(heads):
        d = slice(h * depth, (h + 1) * depth)
        maps.append(softmax_over(allowed, np.einsum("td,sd->ts", queries[:, d], keys[:, d]) / math.sqrt(depth)))
    return maps


@dataclass
class NumpyOutput:
    """What one forward gives; lists have one entry per layer."""

    conv_features: Array  # [C, F]
    features: Array  # [F, C]
    encoder_input: Array  # [F, C]
    layers: list[Array] = field(default_factory=list)  # [F, C] each
    projections: list[Array] = field(default_factory=list)  # [F, W] each
    maps: list[Array] = field(default_factory=list)  # [H, F, F]: the last computed map


def forward(
    state: dict[str, Any],
    config: Any,
    wave: Array,
    *,
    mask: Array | None = None,
    chunk: tuple[int, int] | None = None,
) -> NumpyOutput:
    """One utterance [T]. mask [F] true where masked; chunk (C, L) or None for full context."""
    w = Weights(state)
    raw = front_end(w, config, np.asarray(wave, dtype=np.float64))
    x = w.norm("layer_norm", raw.T)
    if "post_extract_proj.weight" in w:
        x = w.linear("post_extract_proj", x)
    if mask is not None:
        x = np.where(mask[:, None], w["mask_emb"], x)
    features, x = x, w.norm("encoder.layer_norm", x + position(w, config, x))
    out = NumpyOutput(raw, features, x)
    frames = len(x)
    allowed = np.ones((frames, frames), dtype=bool)
    if chunk is not None:
        allowed = visible_keys(frames, *chunk, config.lookahead_frames)
    maps: list[Array] = []
    for layer in range(config.layers):
        name = f"encoder.layers.{layer}"
        reuses = layer + 1 in config.reuse_layers
        if not reuses:
            maps = attention_maps(w, f"{name}.self_attn", config.heads, x, allowed)
        again = reuses and config.reuse_mode == "renormalised"
        weights = [softmax_over(allowed, m) for m in maps] if again else maps
        values = np.split(w.linear(f"{name}.self_attn.v_proj", x), config.heads, axis=1)
        context = np.concatenate([p @ v for p, v in zip(weights, values, strict=True)], axis=1)
        x = w.norm(f"{name}.self_attn_layer_norm", x + w.linear(f"{name}.self_attn.out_proj", context))
        x = w.norm(f"{name}.final_layer_norm", x + w.linear(f"{name}.fc2", gelu(w.linear(f"{name}.fc1", x))))
        out.layers.append(x)
        out.maps.append(np.stack(maps))
        if config.head_width is not None:
            out.projections.append(w.linear(f"proj_head.{layer}.lin_proj", x))
    return out


@pytest.fixture(scope="session")
def numpy_forward() -> Callable[..., NumpyOutput]:
    """``numpy_forward(state, config, wave, mask=, chunk=)``, see ``forward``."""
    return forward


@pytest.fixture(scope="session")
def brute_force_visible_keys() -> Callable[[int, int, int, int], Array]:
    return visible_keys
