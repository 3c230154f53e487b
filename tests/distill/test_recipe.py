"""Recipes: the shipped ones hold, overrides are data, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from reuse_distill.distill.recipe import difference, load_recipe, recipe_names
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import to_dict


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_make_a_student_configuration(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.summary
    assert recipe.student.config().targets[-1] in (6, 12)  # layers of the teacher that it is for


def test_published_settings_stand_in_the_recipes() -> None:
    arm, small, mask = (load_recipe(n) for n in ("armhubert-960h", "armhubert-s-100h", "maskhubert-960h"))
    assert (arm.mask.probability, small.mask.probability) == (0.8, 0.4)
    assert (arm.optimiser.lr, mask.optimiser.lr) == (5e-3, 5e-4)
    assert arm.loss.layer_grad_scale and not mask.loss.layer_grad_scale
    assert arm.training.accumulate * arm.data.batch_size == 144
    assert small.training.accumulate * small.data.batch_size == 36
    assert mask.student.config().reuse_layers == () and arm.student.config().reuse_layers == (2, 4, 6, 8, 10, 12)


def test_overrides_are_typed_and_reach_nested_settings() -> None:
    recipe = load_recipe(
        "tiny",
        [
            "optimiser.lr=1e-3",
            "student.changes.reuse_mode=renormalised",
            "contexts=[null, {chunk_frames: 8, left_frames: 64}]",
        ],
    )
    assert recipe.optimiser.lr == 1e-3
    assert recipe.student.config().reuse_mode == "renormalised"
    assert recipe.contexts[0] is None and recipe.contexts[1].chunk_frames == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimser.lr=1"], "did you mean 'optimiser'"),
        (["optimiser.rate=1"], "unknown key 'rate'"),
        (["mask.probability=high"], "expected float, found str"),
        (["training.steps"], "is not an override"),
        (["training.epochs=2"], "give exactly one of them"),
        (["loss.kind=__import__('os')"], r"loss.kind is \"__import__"),
        (["optimiser.lr=!!python/object/apply:os.getcwd []"], "is not a value"),
        (["summary.x=1"], "summary is not a section"),
        (["optimiser.lr=.nan"], "lr nan"),
        (["optimiser.clip_norm=-1"], "optimiser.clip_norm is -1"),
        (["data.crop_seconds=0.01"], r"data.crop_seconds is 0.01\n\nhint: 0 is no cropping; it is at least 0.025"),
        (["data.gain_db=-3"], "data.gain_db is -3"),
        (["data.bad_limit=5"], r"data.bad_limit is 5\n\nhint: it is within 0..1"),
        (["training.seed=-1"], r"training.seed is -1\n\nhint: it is at least 0"),
        (["training.steps=-5", "training.epochs=2"], "training.steps is -5"),
        (["training.accumulate=0"], r"training.accumulate is 0\n\nhint: it is at least 1"),
        (["training.keep_best=-1"], "training.keep_best is -1"),
        (["data.batch_seconds=.nan"], "data.batch_seconds is nan"),
        (["data.batch_size=0"], r"data.batch_size is 0\n\nhint: it is at least 1"),
        (["data.workers=1000"], r"data.workers is 1000\n\nhint: it is within 1..64"),
        (["data.noise_snr_db=.nan"], "data.noise_snr_db is nan"),
        (["loss.rec_weight=.nan"], r"loss.rec_weight is nan\n\nhint: it is at least 0"),
        (["loss.hint_weight=-3"], "loss.hint_weight is -3"),
        (["loss.mix={star: .nan}"], "loss.mix has star with weight nan"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(RdError, match=message):
        load_recipe("tiny", overrides)


def test_unknown_recipe_and_student_field_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="did you mean 'tiny'"):
        load_recipe("tinny")
    with pytest.raises(RdError, match="did you mean 'armhubert-960h'"):
        load_recipe("armhubert")
    with pytest.raises(RdError, match=r"none\.yaml: not a readable recipe: No such file"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(RdError, match="did you mean 'width'"):
        load_recipe("tiny", ["student.changes.widht=64"]).student.config()
    broken = tmp_path / "broken.yaml"
    broken.write_text("summary: [")
    with pytest.raises(RdError, match="not a readable recipe"):
        load_recipe(str(broken))


def test_difference_names_dotted_keys() -> None:
    a, b = (to_dict(load_recipe("tiny", [o])) for o in ("optimiser.lr=1e-3", "optimiser.lr=2e-3"))
    assert difference(a, b) == ["optimiser.lr: 0.001 -> 0.002"]
