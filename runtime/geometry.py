"""Frames and samples: the arithmetic that every package shares.

The convolutional front end of the HuBERT family has kernels 10,3,3,3,3,2,2 and strides 5,2,2,2,2,2,2 without
padding: one frame every 320 samples (20 ms at 16 kHz), each seeing 400 samples (25 ms).
"""

from __future__ import annotations

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 320
RECEPTIVE_FIELD_SAMPLES = 400
OVERLAP_SAMPLES = RECEPTIVE_FIELD_SAMPLES - HOP_SAMPLES  # 80: what a push carries over to the next
HOP_MS = 1000 * HOP_SAMPLES / SAMPLE_RATE_HZ  # 20.0
RECEPTIVE_FIELD_MS = 1000 * RECEPTIVE_FIELD_SAMPLES / SAMPLE_RATE_HZ  # 25.0

# The sliding window of students that see the whole utterance, where none is chosen: 3 s before, 0.32 s a step, 1.28 s
# after it. The positional convolution of published students alone looks ahead 1.26 s (63 frames).
WINDOW_LEFT_FRAMES, WINDOW_CHUNK_FRAMES, WINDOW_RIGHT_FRAMES = 150, 16, 64


def frames_for(samples: int) -> int:
    """Frames that ``samples`` samples at 16 kHz give: (T - 400) // 320 + 1, or 0 below 400 samples."""
    return 0 if samples < RECEPTIVE_FIELD_SAMPLES else (samples - RECEPTIVE_FIELD_SAMPLES) // HOP_SAMPLES + 1


def samples_for(frames: int) -> int:
    """Samples that give exactly ``frames`` frames: 320 F + 80, or 0 for 0 frames."""
    return 0 if frames <= 0 else HOP_SAMPLES * frames + OVERLAP_SAMPLES
