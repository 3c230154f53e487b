"""FitHuBERT and DistilHuBERT: losses against the published sums, start from the teacher, runs; mixtures of losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reuse_distill.distill.data.batches import Batch, Position
from reuse_distill.distill.losses import layerwise_hint, predicting_heads
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.protocol import PairedTeacher
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.distill.training.initial_student import copy_weights
from reuse_distill.distill.training.objective import draw, frame_count, measure
from reuse_distill.distill.training.run_folder import read_metrics
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint

SPLIT = ["student.changes.reuse_layers=[]", "student.changes.head_kind=split", "student.changes.head_targets=[1, 2]",
         "student.changes.layers=1", "student.changes.mask_embedding=false", "student.changes.frame_norm=false",
         "loss.kind=heads", "loss.distance=l1"]  # fmt: skip
FIT = ["student.changes.reuse_layers=[]", "student.changes.time_reduction=2", "student.changes.mask_embedding=false",
       "loss.kind=hint"]  # fmt: skip


def test_predicting_heads_are_the_published_means() -> None:
    """L1 over everything and -log sigmoid(cosine) over frames, as the public code computes them without padding."""
    torch.manual_seed(0)
    predicted, target = torch.randn(3, 2, 7, 5), torch.randn(3, 2, 7, 5)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    distance, unlike = predicting_heads(list(predicted), target, padding, cosine_weight=0.5)
    assert float(distance.total) == pytest.approx(float((predicted - target).abs().mean()), rel=1e-5)
    cosine = -F.logsigmoid(F.cosine_similarity(predicted, target, dim=-1)).mean()
    assert float(unlike.total) == pytest.approx(0.5 * float(cosine), rel=1e-5)
    p, t = predicted[1, 0].numpy(), target[1, 0].numpy()
    cos = (p * t).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1)
    one = predicting_heads([predicted[1, :1]], target[1:2, :1], padding[:1])[1]
    assert float(one.per_layer[0]) == pytest.approx(float(np.log1p(np.exp(-cos)).mean()), rel=1e-5)


def test_predicting_heads_leave_padding_out() -> None:
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 4)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    losses = []
    for value in (0.0, 9.0):
        predicted[:, 1, 4:] = value
        distance, unlike = predicting_heads(list(predicted), target, padding)
        losses.append(float(distance.total + unlike.total))
    assert losses[0] == losses[1]
    public = predicting_heads(list(predicted), target, padding, count="public")[0]
    assert float(public.total) == pytest.approx(float((predicted - target).abs().mean()), rel=1e-5)
    with pytest.raises(RdError, match="the student gives 2 layers and the teacher 1"):
        predicting_heads(list(predicted), target[:1], padding)


def test_hints_are_the_published_sum_of_fithubert() -> None:
    """The last layer whole and the others by a tenth, means over batch, frames and channels."""
    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 2, 5, 3), torch.randn(4, 2, 5, 3)
    total = layerwise_hint(list(ours), theirs, torch.zeros(2, 5, dtype=torch.bool)).total
    per_layer = (ours - theirs).square().mean((1, 2, 3))
    assert float(total) == pytest.approx(float(0.1 * per_layer[:-1].sum() + per_layer[-1]), rel=1e-5)


def test_recipes_have_the_published_settings() -> None:
    fit, distil = load_recipe("fithubert-960h"), load_recipe("distilhubert-960h")
    config = fit.student.config()
    assert (config.width, config.ffn_width, config.layers, config.time_reduction) == (480, 480, 12, 2)
    assert fit.training.accumulate * fit.data.batch_size == 24 and fit.optimiser.lr == 5e-4
    config = distil.student.config()
    assert (config.layers, config.head_targets, config.frame_norm) == (2, (4, 8, 12), False)
    assert distil.student.from_teacher and distil.loss.front_end_grad_scale == 0.1
    assert (distil.optimiser.lr, distil.optimiser.warmup, distil.training.steps) == (2e-4, 0.07, 200_000)


@pytest.mark.parametrize("how", [FIT, SPLIT])
def test_the_loss_falls(
    how: list[str], tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(str(small_recipe), [*how, "training.steps=50", "optimiser.lr=5e-3"])
    student = run(recipe, RunSettings(tiny_teacher, audio_folder, tmp_path / "run", device="cpu"))
    rows = read_metrics(tmp_path / "run")
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert last < 0.9 * first
    assert len(load_checkpoint(student)(torch.randn(1, 1600)).projections) == 2


@pytest.fixture(scope="module")
def teacher_of_its_shape(tmp_path_factory: pytest.TempPathFactory):
    """A HuBERT whose widths are those of the student of SPLIT."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, feat_proj_layer_norm=False,
        conv_dim=(8, 8, 8, 8, 8, 8, 32, 32, 32), conv_kernel=(10, 1, 3, 3, 3, 3, 1, 2, 2),
        conv_stride=(5, 1, 2, 2, 2, 2, 1, 2, 2), num_conv_pos_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("teacher") / "same-shape"
    HubertModel(config).eval().save_pretrained(folder)
    return folder


def test_a_student_of_the_teachers_shape_starts_as_the_teacher(teacher_of_its_shape: Path, small_recipe: Path) -> None:
    """With all of the teacher's parts its layers are the teacher's: the names stand for the same arithmetic."""
    teacher = open_teacher(teacher_of_its_shape)
    changes = ["student.changes.reuse_layers=[]", "student.changes.frame_norm=false", "student.changes.head_width=null"]
    conv = "[[8,10,5],[8,1,1],[8,3,2],[8,3,2],[8,3,2],[8,3,2],[32,1,1],[32,2,2],[32,2,2]]"
    config = load_recipe(str(small_recipe), [*changes, f"student.changes.conv_layers={conv}"]).student.config()
    torch.manual_seed(0)
    student = Student(config).eval()
    student.post_extract_proj = torch.nn.Linear(32, 32)  # a student of one width needs none; transformers has it
    copied = copy_weights(teacher, student)
    assert "encoder.pos_conv.0.weight_g" in copied and "post_extract_proj.weight" in copied
    assert "encoder.layer_norm.weight" not in copied
    again = Student(student.config)
    again.post_extract_proj = torch.nn.Linear(32, 32)
    assert copy_weights(PairedTeacher(teacher, (1, 2), target_norm="layer"), again) == copied, "of what it wraps"
    wave = 0.1 * torch.randn(2, 8000)
    for ours, theirs in zip(student(wave).layers, teacher.hidden_states(wave), strict=True):
        assert (ours - theirs).abs().max() < 1e-5
    other = Student(load_recipe(str(small_recipe), [*changes, "student.changes.ffn_width=64"]).student.config())
    with pytest.raises(RdError, match=r"encoder\.layers\.0\.fc1\.weight: the student needs \[64, 32\], teacher"):
        copy_weights(teacher, other)


def test_a_run_starts_from_the_teacher(
    teacher_of_its_shape: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    losses = {}
    for given in ("true", "false"):
        more = ["training.steps=1", f"student.from_teacher={given}", "loss.front_end_grad_scale=0.1"]
        recipe = load_recipe(str(small_recipe), [*SPLIT, *more])
        run(recipe, RunSettings(teacher_of_its_shape, audio_folder, tmp_path / given, device="cpu"))
        losses[given] = read_metrics(tmp_path / given)[0]["loss"]
    assert losses["true"] != losses["false"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ([*SPLIT, "loss.kind=hint"], r"losses \['hint'\] compare every layer"),
        ([*SPLIT, "student.changes.head_targets=[1, 3]"], r"has 1 and predicts layers \[1, 3\]"),
        ([*FIT, "loss.kind=star", "loss.attention_weight=1.0"], "time_reduction 2 have other frames"),
        ([*FIT, "contexts=[{chunk_frames: 4, left_frames: 8}]"], "has no chunked forward"),
        ([*FIT, "loss.kind=masking"], "needs a student with a mask embedding"),
        (["loss.mix={masking: 1.0}"], "loss.mix has masking with weight 1, loss.kind is masking"),
        (["loss.mix={star: -1.0}"], "loss.mix has star with weight -1"),
        (["loss.mix={starr: 1.0}"], "a key of loss.mix is 'starr'"),
    ],
)  # fmt: skip
def test_combinations_that_are_refused(
    how: list[str], message: str, tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(RdError, match=message):
        run(load_recipe(str(small_recipe), how), RunSettings(tiny_teacher, audio_folder, tmp_path / "r", device="cpu"))


@pytest.mark.parametrize("kinds", [("masking", "star"), ("hint", "star"), ("masking", "hint")])
def test_a_mixture_is_the_weighted_sum_of_its_losses(
    kinds: tuple[str, str], tiny_teacher: Path, small_recipe: Path, make_sound
) -> None:
    teacher = open_teacher(tiny_teacher)
    wave = torch.stack([torch.from_numpy(make_sound(0.8, s)) for s in (1, 2)])
    batch = Batch(wave, torch.tensor([12_800, 9_000]), ["a", "b"], Position())
    torch.manual_seed(0)
    student = Student(load_recipe(str(small_recipe)).student.config()).eval()

    def loss(*how: str):
        recipe = load_recipe(str(small_recipe), list(how))
        frames = torch.tensor(frame_count(recipe, batch))
        with torch.no_grad():
            return measure(recipe, student, teacher, batch, draw(recipe, batch, layers=2), frames=frames)

    first, second = (float(loss(f"loss.kind={kind}").loss) for kind in kinds)
    mixed = loss(f"loss.kind={kinds[0]}", f"loss.mix={{{kinds[1]}: 0.25}}")
    assert float(mixed.loss) == pytest.approx(first + 0.25 * second, rel=1e-4)
    assert float(mixed.terms[kinds[1]]) == pytest.approx(second, rel=1e-4)
