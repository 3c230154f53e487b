"""Pictures of values between nothing and everything, such as attention maps: a PNG made here, inside a drawing."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from reuse_distill.report.drawing.svg import CHARACTER_PX, EDGE, INK, drawing, number, text

# From nothing to everything: white, light blue, blue, navy. Dark screens show the picture inverted (``svg.py``).
_STOPS = np.array([[255, 255, 255], [190, 212, 248], [47, 111, 222], [12, 28, 72]], np.float64)
SIDE_PX, EDGE_PX = 170, 20  # of the picture, and the room for titles


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


def _image(values: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    """Values (H, W) in 0..1 as an embedded picture with a frame."""
    data = base64.b64encode(png(colours(values))).decode()
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    picture = f'preserveAspectRatio="none" style="image-rendering:pixelated" href="data:image/png;base64,{data}"'
    return f'<image {place} {picture}/><rect {place} fill="none" stroke="{EDGE}"/>'


def _upright(x: float, y: float, label: str) -> str:
    """Text that reads upwards from (x, y)."""
    return f'<g transform="rotate(-90 {x:g} {y:g})">{text(x, y, label)}</g>'


def attention_picture(attention: np.ndarray, *, full: float, unit: str = "frame") -> str:
    """A map (F, F) as SVG, query frames down and key frames across; ``full`` is the weight shown strongest.

    ``unit`` names what the rows are where they are no frames.
    """
    low, high, count = EDGE_PX, EDGE_PX + SIDE_PX, f"{attention.shape[0]} {unit}s"
    parts = [
        _image(attention / full, low, low, SIDE_PX, SIDE_PX),
        text(low, 14, f"key {unit} →"),
        text(high, 14, count, anchor="end"),
        _upright(14, high, f"← query {unit}"),
    ]
    return drawing(parts, "attention map", width=high + 2, height=high + 2, widest=1.5)


def full_scale(maps: Sequence[np.ndarray]) -> float:
    """The weight that is shown strongest for pictures that stand beside each other: the 99th percentile of all."""
    return max(float(np.quantile(np.concatenate([m.ravel() for m in maps]), 0.99)), 1e-6)


def matrix_picture(matrix: Sequence[Sequence[float]], *, title: str, across: str, down: str, cell_px: int = 30) -> str:
    """A small matrix of values in 0..1 with numbered rows and columns (from 1) and a scale beside it."""
    values = np.asarray(matrix, np.float64)
    rows, columns = values.shape
    left, top = 56, 46
    width, height = cell_px * columns, cell_px * rows
    parts = [text(2, 15, title), _image(values, left, top, width, height)]
    parts += [text(left + cell_px * (i + 0.5), top - 7, str(i + 1), anchor="middle") for i in range(columns)]
    parts += [text(left - 7, top + cell_px * (i + 0.5) + 4, str(i + 1), anchor="end") for i in range(rows)]
    parts += [text(left, top + height + 18, f"{across} →"), _upright(14, top + height, f"← {down}")]
    scale = left + width + 18
    parts.append(_image(np.linspace(1, 0, 64)[:, None], scale, top, 14, height))
    parts += [text(scale + 20, top + 10, number(1.0), colour=INK), text(scale + 20, top + height, number(0.0))]
    wide = max(scale + 44, CHARACTER_PX * len(title) + 4, left + CHARACTER_PX * (len(across) + 2))
    return drawing(parts, title, width=wide, height=max(top + height + 26, top + CHARACTER_PX * (len(down) + 2)))
