"""The contract of an artifact's input, with its rules in words: for manifests and for the metadata of ONNX files."""

from __future__ import annotations

from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.runtime.bundle_format.input_contract import AS_IS, PER_UTTERANCE, InputContract, MelSettings
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.geometry import HOP_SAMPLES, OVERLAP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.student import StudentConfig
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES, field_and_hop


def input_contract(config: StudentConfig, spec: ExportSpec, geometry: Geometry) -> InputContract:
    """What the samples have to be for an artifact of the student with ``config``, in the mode of ``spec``."""
    epsilon = config.normalise_input
    whisper = config.front_end == "whisper"
    field = field_and_hop(config.conv_layers, config.front_end)[0]
    contract = InputContract(
        level=AS_IS if epsilon is None else PER_UTTERANCE,
        level_epsilon=epsilon or 0.0,
        # Whisper's frame f is centred on sample 320 f; a frame of ours ends with its own 400 samples.
        first_sample=-(field // 2) if whisper else -config.history_samples,
        field_samples=field,
        longest_samples=config.window_frames * HOP_SAMPLES if whisper and spec.mode.name == "offline" else None,
        mel=_mel(config),
    )
    frame = _frame_rules(contract)
    if contract.mel is not None:
        frame = [*frame, f"The artifact computes its log-mel itself: {contract.mel.bands} bands, {contract.mel.scale}."]
    if whisper:
        seconds = config.window_frames * HOP_SAMPLES / SAMPLE_RATE_HZ
        frame = [
            *frame,
            f"It sees {seconds:g} s, digital silence after shorter audio; longer audio goes through windows.",
        ]
    by_mode = {"offline": _offline_rules, "window": _window_rules, "streaming": _streaming_rules}
    rules = (*_sample_rules(contract, spec.mode.name), *frame, *by_mode[spec.mode.name](geometry), *_dial_rules(spec))
    return InputContract(**{**vars(contract), "rules": rules})


def _mel(config: StudentConfig) -> MelSettings | None:
    if config.front_end == "conv":
        return None
    if config.front_end == "fbank":
        scale = "Kaldi's filter bank, 20 to 8000 Hz, pre-emphasis 0.97, Hamming window, natural logarithm of the power"
        return MelSettings(config.mel_bands, MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES, scale)
    floor = "8 decades below the loudest bin of the window" if config.front_end == "whisper" else "fixed"
    scale = f"Slaney's mel scale and norm, 0 to 8000 Hz, Hann window, log10 of the power, floor {floor}"
    return MelSettings(config.mel_bands, MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES, scale)


def _sample_rules(contract: InputContract, mode: str) -> list[str]:
    rules = [f"Samples are mono float32 at {SAMPLE_RATE_HZ} Hz, full scale is -1 to 1."]
    if contract.level == AS_IS:
        return [*rules, "Their level is not changed."]
    how = f"(x - mean) / sqrt(variance + {contract.level_epsilon:g})"
    over = "the whole utterance" if mode == "offline" else "all samples heard up to the end of the window"
    rules.append(f"They are normalised before the artifact sees them: {how}, mean and variance of {over}.")
    if mode == "offline":
        rules.append("A stream over this artifact takes mean and variance of all samples heard so far.")
    return rules


def _frame_rules(contract: InputContract) -> list[str]:
    first, last = contract.first_sample, contract.first_sample + contract.field_samples - 1
    return [
        f"Frame f is made of samples {_offset(first)} to {_offset(last)}: one frame every {HOP_SAMPLES} samples. "
        "Attention and positions add what other frames hold.",
        f"T samples have F = (T - {RECEPTIVE_FIELD_SAMPLES}) / {HOP_SAMPLES} + 1 frames, rounded down; fewer than "
        f"{RECEPTIVE_FIELD_SAMPLES} samples have none. The first frame begins with the first sample; samples after the "
        "last whole frame have no frame of their own.",
    ]


def _offset(samples: int) -> str:
    return f"{HOP_SAMPLES} f {'-' if samples < 0 else '+'} {abs(samples)}"


def _offline_rules(_: Geometry) -> list[str]:
    return ["wave [1, T] holds the whole utterance; features [1, N, F, W] hold its frames in order."]


def _window_rules(geometry: Geometry) -> list[str]:
    left, chunk, right = geometry.left_frames, geometry.chunk_frames, geometry.right_frames
    frames = left + chunk + right
    return [
        f"A call sees {left} frames before a chunk, the {chunk} frames of the chunk, and {right} frames after it: "
        f"wave [1, {HOP_SAMPLES * frames + OVERLAP_SAMPLES}] begins with sample {HOP_SAMPLES} (n C - {left}) of chunk "
        f"n, C = {chunk}.",
        f"frame_valid [1, {frames}] is 1 where a frame exists; before the start and after the end it is 0 and the "
        "samples are zeros.",
        f"features [1, N, {chunk}, W] are those of the chunk; after the end only the frames that exist count.",
    ]


def _dial_rules(spec: ExportSpec) -> list[str]:
    """What changes where a step may have several sizes."""
    if not isinstance(spec.mode, Streaming) or not spec.mode.chunks:
        return []
    return [
        f"C may be {', '.join(map(str, spec.mode.chunks))} and change from step to step, with the same states: a step "
        f"that begins at frame p, where the one before ended, takes samples [B, {HOP_SAMPLES} C + {OVERLAP_SAMPLES}] "
        f"from {HOP_SAMPLES} p on and gives the frames p - R to p + C - R - 1.",
    ]


def _streaming_rules(geometry: Geometry) -> list[str]:
    chunk, ahead, left = geometry.chunk_frames, geometry.lookahead_frames, geometry.left_frames
    return [
        f"A step takes samples [B, {HOP_SAMPLES * chunk + OVERLAP_SAMPLES}]: {HOP_SAMPLES * chunk} new ones behind the "
        f"last {OVERLAP_SAMPLES} of the step before. fresh [B, {chunk}] is 1 for each of its {chunk} frames whose "
        "samples all exist.",
        "All states are zeros at the start, and zeros start a stream anew. A state that is replaced becomes its "
        f"output; to a cache the rows of its output are added, and of {left + chunk} rows the newest {left} are kept. "
        "Cache slots may be in any order (a ring buffer), as long as all caches of a stream use the same slots.",
        f"A step gives the frames n C - {ahead} to (n + 1) C - {ahead + 1} of chunk n, C = {chunk}: the first {ahead} "
        "rows of the first step are dropped.",
        "At the end of a stream, steps with zeros for missing samples and fresh 0 follow until its last frame, "
        f"{ahead} frames behind, has come out; rows after it are dropped.",
    ]
