"""Quantisation: what stays in float and why, the audio that calibrates it, and how weights are packed."""
