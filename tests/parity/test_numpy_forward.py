"""The student equals an independent NumPy forward; the NumPy forward equals the public reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.student import ChunkContext, Student, StudentConfig, preset
from reuse_distill.student.config import conv_stack, mel_stack
from reuse_distill.student.front_ends.log_mel import LogMel, MelFrontEnd

EXACT = 1e-10  # float64 against float64
REFERENCE = 5e-5  # float32 reference, see the stored tolerances

SMALL = {
    "width": 16,
    "ffn_width": 24,
    "heads": 4,
    "layers": 4,
    "conv_layers": conv_stack(6, 5, 16),
    "position_groups": 4,
    "head_width": 12,
}
REUSE = {"reuse_layers": (2, 4)}
CONFIGS = {
    "armhubert": preset("armhubert-960h", **SMALL, **REUSE),
    "armhubert-renormalised": preset("armhubert-960h", **SMALL, **REUSE, reuse_mode="renormalised"),
    "armhubert-s": preset("armhubert-s", **{**SMALL, "heads": 2, "ffn_width": 20}, **REUSE),
    "maskhubert": preset("maskhubert-960h", **SMALL),
    "starhubert": preset("starhubert", **{**SMALL, "head_width": None}),
    "starhubert-l": preset("starhubert-l", **{**SMALL, "head_width": None, "ffn_width": 40}),
    "arm-stream": preset("arm-stream", **SMALL, **REUSE),
    "tiny": preset("tiny", **SMALL, **REUSE),
    "tiny-stream": preset("tiny-stream", **SMALL, **REUSE, reuse_mode="renormalised"),
    "consecutive": preset("tiny", **{**SMALL, "layers": 5}, reuse_layers=(2, 3, 5)),
    "consecutive-renormalised": preset(
        "tiny", **{**SMALL, "layers": 5}, reuse_layers=(2, 3, 5), reuse_mode="renormalised"
    ),
    "conv-narrower": preset("tiny", **{**SMALL, "conv_layers": conv_stack(6, 5, 8)}, **REUSE),
    "mel": preset("pocket-stream", **{**SMALL, "conv_layers": mel_stack(6, 16)}, **REUSE),
    "odd-kernel": preset("tiny", **SMALL, **REUSE, position_kernel=9, lookahead_frames=0),
    "all-lookahead": preset("tiny", **SMALL, **REUSE, position_kernel=9, lookahead_frames=8),
}


def student_of(config: StudentConfig, seed: int = 0) -> Student:
    """Weights far from their initial values, so that every parameter counts (norm gains, biases, sharp maps)."""
    student = Student(config).double().eval()
    if isinstance(student.feature_extractor, MelFrontEnd):
        student.feature_extractor.log_mel = LogMel(np.float64)  # its fixed weights are rounded to float32 otherwise
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in student.named_parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.ndim == 1:
                value.add_(0.3 * noise)
            else:
                value.copy_(noise / np.sqrt(value[0].numel()) * (2.0 if "q_proj" in name or "k_proj" in name else 1))
    return student


def wave_of(samples: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples)


def state_of(student: Student) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy() for key, value in student.state_dict().items()}


def assert_same(ours, theirs, *, row: int = 0, bound: float = EXACT) -> None:
    """Every stage of utterance ``row`` over the frames that NumPy has, and the stages are not trivially small."""
    frames = len(theirs.features)
    assert np.abs(ours.conv_features[row, :, :frames].numpy() - theirs.conv_features).max() <= bound
    assert np.abs(ours.features[row, :frames].numpy() - theirs.features).max() <= bound
    assert np.abs(ours.encoder_input[row, :frames].numpy() - theirs.encoder_input).max() <= bound
    for name in ("layers", "projections"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert len(mine) == len(other)
        for x, y in zip(mine, other, strict=True):
            assert np.abs(y).std() > 0.1
            assert np.abs(x[row, :frames].numpy() - y).max() <= bound
    for mine, other in zip(ours.maps, theirs.maps, strict=True):
        assert np.abs(mine[row, :, :frames, :frames].numpy() - other).max() <= bound


@pytest.mark.parametrize("name", CONFIGS)
def test_one_utterance(name: str, numpy_forward) -> None:
    config = CONFIGS[name]
    student, wave = student_of(config), wave_of(320 * 40 + 213)
    with torch.no_grad():
        ours = student(torch.from_numpy(wave)[None], with_maps=True)
    assert_same(ours, numpy_forward(state_of(student), config, wave))


@pytest.mark.parametrize("name", CONFIGS)
def test_padded_batch_is_each_utterance_alone(name: str, numpy_forward) -> None:
    config = CONFIGS[name]
    student, lengths = student_of(config), [320 * 12 + 80, 320 * 30 + 333, 400]
    waves = [wave_of(samples, seed) for seed, samples in enumerate(lengths)]
    batch = torch.zeros(3, max(lengths), dtype=torch.float64)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    with torch.no_grad():
        ours = student(batch, torch.tensor(lengths), with_maps=True)
    for row, wave in enumerate(waves):
        theirs = numpy_forward(state_of(student), config, wave)
        assert int((~ours.padding[row]).sum()) == len(theirs.features)
        assert_same(ours, theirs, row=row)


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.mask_embedding])
def test_masked_frames_take_the_mask_embedding(name: str, numpy_forward) -> None:
    config = CONFIGS[name]
    student, wave = student_of(config), wave_of(320 * 25 + 80)
    mask = np.zeros(25, dtype=bool)
    mask[3:9] = mask[20:] = True
    with torch.no_grad():
        ours = student(torch.from_numpy(wave)[None], mask=torch.from_numpy(mask)[None], with_maps=True)
    assert_same(ours, numpy_forward(state_of(student), config, wave, mask=mask))


@pytest.mark.parametrize("reuse_mode", ["shared", "renormalised"])
@pytest.mark.parametrize(("chunk", "left"), [(1, 0), (1, 5), (4, 0), (4, 6), (8, 8), (50, 3)])
@pytest.mark.parametrize("name", ["arm-stream", "armhubert", "consecutive"])
def test_chunked_attention(name: str, chunk: int, left: int, reuse_mode: str, numpy_forward) -> None:
    config = dataclasses.replace(CONFIGS[name], reuse_mode=reuse_mode)
    student, wave = student_of(config), wave_of(320 * 23 + 80)
    with torch.no_grad():
        ours = student(torch.from_numpy(wave)[None], context=ChunkContext(chunk, left), with_maps=True)
    assert_same(ours, numpy_forward(state_of(student), config, wave, chunk=(chunk, left)))


def test_chunked_attention_in_a_padded_batch(numpy_forward) -> None:
    config = CONFIGS["tiny-stream"]
    student, waves = student_of(config), [wave_of(320 * 9 + 80), wave_of(320 * 21 + 80, 2)]
    batch = torch.zeros(2, len(waves[1]), dtype=torch.float64)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    with torch.no_grad():
        ours = student(batch, torch.tensor([len(w) for w in waves]), context=ChunkContext(4, 6), with_maps=True)
    for row, wave in enumerate(waves):
        assert_same(ours, numpy_forward(state_of(student), config, wave, chunk=(4, 6)), row=row)


def test_the_two_reuse_modes_are_told_apart(numpy_forward) -> None:
    """The bound would be worthless if both modes gave nearly the same."""
    student, wave = student_of(CONFIGS["armhubert"]), wave_of(320 * 30 + 80)
    shared = numpy_forward(state_of(student), CONFIGS["armhubert"], wave)
    again = numpy_forward(state_of(student), CONFIGS["armhubert-renormalised"], wave)
    assert np.abs(shared.layers[0] - again.layers[0]).max() == 0
    assert np.abs(shared.layers[1] - again.layers[1]).max() > 0.1


@pytest.mark.parametrize("family", ["armhubert_tiny", "maskhubert_tiny", "starhubert_tiny"])
def test_numpy_forward_is_the_public_reference(family: str, golden_dir: Path, numpy_forward) -> None:
    """Released weights, real speech: front end, every layer, every head, and the map of layer 0."""
    soundfile = pytest.importorskip("soundfile")
    from reuse_distill.student.checkpoints.public import load_public_checkpoint

    folder = golden_dir / family
    student = load_public_checkpoint(next(folder.glob("*.ckpt")), folder / "config.yaml")
    stored = np.load(folder / "expected.npz", allow_pickle=False)
    wave = soundfile.read(golden_dir / "inputs/w0.wav", dtype="float32")[0]
    ours = numpy_forward(state_of(student), student.config, wave)
    assert np.abs(ours.conv_features - stored["w0_conv_features"][0]).max() <= REFERENCE
    assert np.abs(ours.features - stored["w0_features"][0]).max() <= REFERENCE
    for layer in range(4):
        assert np.abs(ours.layers[layer] - stored[f"w0_layer_results_{layer}"][0]).max() <= REFERENCE
    if family == "starhubert_tiny":
        assert np.abs(ours.maps[0].mean(0) - stored["w0_attn_headmean_0"][0]).max() <= REFERENCE
        return
    heads = [stored[f"w0_projections_{layer}"][0] for layer in range(3)] + [stored["w0_x"][0]]
    for mine, theirs in zip(ours.projections, heads, strict=True):
        assert np.abs(mine - theirs).max() <= REFERENCE
    if family == "armhubert_tiny":
        assert np.abs(ours.maps[0] - stored["w0_attn_probs_0"][:, 0]).max() <= REFERENCE
