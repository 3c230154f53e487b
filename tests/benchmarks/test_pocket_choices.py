"""Short trainings from stored layers of both inputs: what is stored, that every variant learns, the table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.making import make_targets
from reuse_distill.distill.teachers.stored import TargetStore, utterance_key
from reuse_distill.student import Student

from benchmarks import pocket_choices
from benchmarks.pocket_choices import Material, fit, held_out, lines, mask_of, masked, material, recipe_of, shape
from benchmarks.pocket_quality import of_targets

SECONDS = (1.2, 0.9, 1.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A Whisper of six narrow layers, three recordings, their targets and those of masked input."""
    import transformers

    folder = tmp_path_factory.mktemp("choices")
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=6, encoder_attention_heads=2, encoder_ffn_dim=16, decoder_layers=1, vocab_size=20,
        decoder_attention_heads=2, decoder_ffn_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperModel(config).save_pretrained(folder / "whisper")
    (folder / "audio").mkdir()
    random = np.random.default_rng(0)
    for number, seconds in enumerate(SECONDS):
        soundfile.write(folder / "audio" / f"{number}.wav", 0.1 * random.standard_normal(int(16_000 * seconds)), 16_000)
    args = SimpleNamespace(
        teacher=folder / "whisper", data=folder / "audio", targets=folder / "t", output=folder / "m", shards=1,
        masked=folder / "m",
    )  # fmt: skip
    make_targets(open_teacher(args.teacher), find_utterances(args.data), args.targets, report=lambda _: None)
    masked(args)
    return args


@pytest.fixture
def short(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Material:
    monkeypatch.setattr(pocket_choices, "CROP_FRAMES", 20)
    return material(made)


def test_masked_layers_are_those_of_masked_input(made: SimpleNamespace) -> None:
    """Alone in its window a recording has what the teacher's own masked pass gives, but for what a position adds."""
    utterance = find_utterances(made.data).utterances[0]
    key, mask = utterance_key(utterance), mask_of(utterance, 0)
    assert 0.1 < mask.mean() < 0.7
    plain, seen = TargetStore(made.targets), TargetStore(made.masked)
    wave = torch.from_numpy(soundfile.read(utterance.path, dtype="float32")[0])
    teacher = open_teacher(made.teacher)
    both = teacher.both(wave[None], None, torch.from_numpy(mask)[None])
    for store, expected in zip((plain, seen), both, strict=True):
        first = torch.from_numpy(store.as_stored(key)[0])  # the first layer hardly hears the window's other pieces
        assert torch.nn.functional.cosine_similarity(first, expected[0, 0], dim=-1).mean() > 0.98
    assert not np.allclose(plain.as_stored(key), seen.as_stored(key), atol=1e-2)


def test_masking_learns_from_what_is_stored(short: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_choices, "WIDTH", 32)
    monkeypatch.setattr(pocket_choices, "FFN_WIDTH", 32)
    student = Student(shape("masking-shared", head_width=16))
    before = student.encoder.layers[0].fc1.weight.clone()
    steps, curve = fit(student, recipe_of("masking-shared"), short, seed=1, budget_s=0.05)
    assert steps >= 1 and np.isfinite(curve).all()
    assert not torch.equal(before, student.encoder.layers[0].fc1.weight)


def test_steps_are_an_equal_budget_on_a_busy_machine(short: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_choices, "WIDTH", 32)
    monkeypatch.setattr(pocket_choices, "FFN_WIDTH", 32)
    torch.manual_seed(0)
    students = [Student(shape("hint-shared", head_width=16)) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    runs = [fit(s, recipe_of("hint-shared"), short, seed=1, budget_s=1e-9, budget_steps=3) for s in students]
    assert runs[0] == runs[1] and runs[0][0] == 3


def test_variants_differ_in_what_they_are_called() -> None:
    shapes = {variant: shape(variant, head_width=16) for variant in pocket_choices.VARIANTS}
    assert [v for v, config in shapes.items() if config.front_end == "conv"] == ["hint-conv"]
    assert [v for v, config in shapes.items() if config.reuse_mode != "shared"] == [
        "hint-renormalised",
        "masking-renormalised",
    ]
    assert [recipe_of(v).loss.kind for v in shapes] == ["hint", "hint", "masking", "masking", "hint"]


def test_the_teachers_features_are_read_by_what_is_heard(made: SimpleNamespace) -> None:
    source, store = of_targets("teacher", {made.data: made.targets}), TargetStore(made.targets, target_norm="layer")
    for utterance in find_utterances(made.data).utterances:
        key = utterance_key(utterance)
        features = source(soundfile.read(utterance.path, dtype="float32")[0])
        np.testing.assert_array_equal(features.numpy(), store.frames(key, 0, store.count(key)))
    assert source.parameters == store.info.parameters
    with pytest.raises(KeyError):
        source(np.zeros(8000, np.float32))


def test_errors_on_unseen_speakers_are_those_of_every_layer(made: SimpleNamespace, tmp_path: Path) -> None:
    store = TargetStore(made.targets, target_norm="layer")
    names = [utterance.path for utterance in find_utterances(made.data).utterances]
    rows = [f"{path},s,{split}" for path, split in zip(names, ("train", "test", "test"), strict=True)]
    (tmp_path / "m.csv").write_text("\n".join(["file,speaker,split", *rows]))
    student = Student(shape("hint-shared", head_width=16)).eval()
    with torch.no_grad():
        for parameter in student.proj_head.parameters():
            parameter.zero_()
    errors = held_out(student, store, tmp_path / "m.csv")
    keys = [utterance_key(u) for u in find_utterances(tmp_path / "m.csv", split="test").utterances]
    frames = np.concatenate([store.frames(key, 0, store.count(key)) for key in keys], axis=1)
    np.testing.assert_allclose(errors, np.square(frames).mean((1, 2)), atol=1e-3)


def test_the_table_says_what_was_not_measured() -> None:
    row = {"variant": "hint-conv", "seed": 1, "steps": 7, "processor_seconds": 4.2, "held_out": [0.2, 0.4, 0.9]}
    probed = {**row, "variant": "hint-shared", "digits": {"value": 0.5, "low": 0.4, "high": 0.6}}
    assert lines([row, probed])[2:] == [
        "| hint-shared | 1 | 7 | 4 | 0.300 | 0.900 | 0.500 [0.400, 0.600] |",
        "| hint-conv | 1 | 7 | 4 | 0.300 | 0.900 | unmeasured |",
    ]
