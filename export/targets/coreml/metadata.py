"""What a package says about itself in Xcode: author, licence, every input and output."""

from __future__ import annotations

from typing import Any

from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.spec import ExportSpec

AUTHOR = "made by reuse-distill (rd-export --target coreml)"
LICENCE = "the licence of the checkpoint that the weights come from; see source in the bundle's manifest.json"
TITLES = {
    "offline": "Speech features of a whole utterance",
    "window": "Speech features of the middle of a sliding window (approximate)",
    "streaming": "Speech features of one chunk of a stream",
}
DESCRIPTIONS = {
    "wave": "mono samples at 16 kHz, -1 to 1; 320 samples per frame, the first frame needs 400",
    "frame_valid": "1 for every frame of the window that exists, 0 before the start and after the end",
    "samples": "320 C + 80 samples at 16 kHz, -1 to 1; the first 80 are the last 80 of the step before",
    "fresh": "1 for each of the C frames whose 400 samples all exist, 0 after the end",
    "features": "[streams, layers, frames, width], a frame is 20 ms",
    "position": "last frames before the positional convolution; zeros at the start",
    "position_validity": "1 where a frame of the look-ahead exists",
    "validity": "1 where a slot of the caches holds a frame",
    "keys": "cached keys of a layer that computes its attention map",
    "values": "cached values of a layer",
    "audio": "samples before those of this step; zeros at the start",
}


def describe(model: Any, captured: Capture, spec: ExportSpec) -> None:
    """Fill in the metadata of a coremltools model, in place."""
    specification = model.get_spec().description
    roles = {name: state.role for state in captured.states for name in (state.input, state.output)}
    heads = {o.name: f"output of a {o.kind} head, [streams, frames, {o.columns}]" for o in spec.task_contracts}
    model.author, model.license, model.short_description = AUTHOR, LICENCE, TITLES[spec.mode.name]
    for port in specification.input:
        model.input_description[port.name] = DESCRIPTIONS[roles.get(port.name, port.name)]
    for port in specification.output:
        role = roles.get(port.name, port.name)
        model.output_description[port.name] = DESCRIPTIONS.get(role) or heads[role]
    shape = captured.geometry
    model.user_defined_metadata.update(
        {
            "reuse-distill.mode": spec.mode.name,
            "reuse-distill.precision": spec.precision,
            "reuse-distill.layers": ",".join(map(str, spec.layers)),
            "reuse-distill.features": spec.features,
            "reuse-distill.chunk_frames": str(shape.chunk_frames),
            "reuse-distill.lookahead_frames": str(shape.lookahead_frames),
            "reuse-distill.left_frames": str(shape.left_frames),
            "reuse-distill.right_frames": str(shape.right_frames),
        }
    )
