"""Attention maps as small pictures: a PNG made here, so that a report needs no plotting library and stays small."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from reuse_distill.devices.svg import GREY, text

# From nothing to everything: white, light blue, blue, navy.
_STOPS = np.array([[255, 255, 255], [190, 212, 248], [47, 111, 222], [12, 28, 72]], np.float64)
SIDE, EDGE = 300, 18  # pixels of the picture and of the room for titles


def colours(values: np.ndarray) -> np.ndarray:
    """(H, W) values in 0..1 -> (H, W, 3) uint8."""
    position = np.clip(values, 0, 1) * (len(_STOPS) - 1)
    below = np.minimum(position.astype(int), len(_STOPS) - 2)
    share = (position - below)[..., None]
    return np.rint(_STOPS[below] * (1 - share) + _STOPS[below + 1] * share).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> an 8-bit RGB PNG file."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, 3 * width)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def attention_picture(attention: np.ndarray, *, full: float, unit: str = "frame") -> str:
    """A map (F, F) as SVG, query frames down and key frames across; ``full`` is the weight shown darkest.

    ``unit`` names what the rows are where they are no frames.
    """
    picture = base64.b64encode(png(colours(attention / full))).decode()
    frames = attention.shape[0]
    low, high = EDGE, EDGE + SIDE
    image = (
        f'<image x="{low}" y="{low}" width="{SIDE}" height="{SIDE}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{picture}"/>'
        f'<rect x="{low}" y="{low}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#d5dae2"/>'
    )
    titles = [
        text(low, 12, f"key {unit} →", colour=GREY),
        text(high, 12, f"{frames} {unit}s", anchor="end", colour=GREY),
        f'<g transform="rotate(-90 12 {high})">{text(12, high, f"← query {unit}", colour=GREY)}</g>',
    ]
    size = high + 2
    return f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="attention map">{image}{"".join(titles)}</svg>'


def full_scale(maps: list[np.ndarray]) -> float:
    """The weight that is shown darkest for pictures that stand beside each other: the 99th percentile of all."""
    return max(float(np.quantile(np.concatenate([m.ravel() for m in maps]), 0.99)), 1e-6)
