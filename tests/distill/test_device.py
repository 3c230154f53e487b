"""A training step on a device that is not the host, for lack of a GPU on torch's device without memory.

``meta`` refuses what makes a step slow or wrong on CUDA: an operand left on the CPU, a value read back by the host, a
result whose size depends on values (an index by mask). What is computed is not looked at here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from reuse_distill.distill.data.batches import Batch, Position
from reuse_distill.distill.quantised import QuantisedStudent
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.protocol import PairedTeacher
from reuse_distill.distill.training import objective
from reuse_distill.distill.training.launch import reaches_every_parameter
from reuse_distill.distill.training.objective import draw, frame_count, measure, on_device
from reuse_distill.distill.training.pairing import fitted
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student import Student

AWAY = torch.device("meta")
STEPS = {
    "masking": ("tiny", []),
    "renormalised": ("tiny", ["student.changes.reuse_mode=renormalised"]),
    "mixture": ("tiny", ["loss.mix={star: 0.5}"]),
    "streaming": ("tiny-stream", []),
    "drawn hint layers": ("tiny", ["loss.hint_layers=1"]),
    "hint": ("tiny-hint", []),
    "star": ("tiny-star", []),
    "star with maps": ("tiny-star", ["loss.attention_weight=1.0"]),
    "time reduction": ("tiny-fit", []),
    "heads": ("tiny-distil", []),
    "fake quantisation": ("tiny-int8", []),
    "targets after a norm": ("pocket-stream", ["student.changes.ffn_width=64"]),
}


@pytest.fixture
def without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without autocast, which ``meta`` has not, and without transformers' look for padding, once per teacher pass."""
    from transformers import masking_utils

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *_, **__: False)


@pytest.fixture(scope="module")
def hubert(random_hubert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_hubert(tmp_path_factory.mktemp("teacher") / "hubert", layers=6)


def step(hubert: Path, name: str, changes: list[str]) -> tuple[torch.Tensor, torch.nn.Module]:
    """(loss, the module that was trained) of two utterances, after the backward pass."""
    recipe = load_recipe(name, changes)
    attention = "eager" if recipe.loss.attention_weight > 0 else None
    opened = open_teacher(hubert, dtype=torch.float16, attention=attention)
    config, layers = fitted(recipe, opened.info)
    teacher = PairedTeacher(opened, layers, target_norm=recipe.loss.target_norm).to(AWAY)
    taught = Student(config)
    trained = (QuantisedStudent(taught) if recipe.training.fake_quant else taught).to(AWAY).train()
    batch = Batch(torch.zeros(2, 8000), torch.tensor([8000, 6000]), ["a", "b"], Position())
    moved, draws = on_device(batch, draw(recipe, batch, layers=taught.config.layers), AWAY)
    frames = torch.tensor(frame_count(recipe, batch), device=AWAY)
    measured = measure(recipe, trained, teacher, moved, draws, frames=frames)
    measured.loss.backward()
    assert all(value.device == AWAY for value in measured.terms.values())
    return measured.loss, trained


@pytest.mark.usefixtures("without_checks")
@pytest.mark.parametrize("name", STEPS)
def test_a_step_stays_on_its_device(hubert: Path, name: str) -> None:
    loss, trained = step(hubert, *STEPS[name])
    assert loss.device == AWAY and loss.dtype == torch.float32
    assert {p.grad.device for p in trained.parameters() if p.grad is not None} == {AWAY}
    if reaches_every_parameter(load_recipe(*STEPS[name])):  # what DDP is promised
        assert [n for n, p in trained.named_parameters() if p.grad is None] == []


@pytest.mark.usefixtures("without_checks")
@pytest.mark.parametrize(
    "broken",
    [
        lambda loss: float(loss.detach()),
        lambda loss: bool(torch.isfinite(loss)),
        lambda loss: loss[torch.ones((), dtype=torch.bool, device=AWAY)],
        lambda loss: loss[None] + torch.ones(1),
    ],
    ids=["float", "if", "index by mask", "operand on the CPU"],
)
def test_a_step_that_asks_the_host_is_found(hubert: Path, broken: Callable[[torch.Tensor], Any], monkeypatch) -> None:
    asked = objective.TERMS["masking"]

    def term(*args: Any) -> Any:
        measured = asked(*args)
        broken(measured.loss)
        return measured

    monkeypatch.setitem(objective.TERMS, "masking", term)
    with pytest.raises((RuntimeError, NotImplementedError)):
        step(hubert, "tiny", [])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny-stream", "tiny-star", "tiny-fit"])
def test_the_student_compiles_to_one_graph_for_all_shapes(name: str) -> None:
    """A graph break or a compilation per length would cost a GPU more than --compile gains."""
    recipe, graphs = load_recipe(name, []), []

    def count(module: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(module)
        return module.forward

    taught = Student(recipe.student.config()).train()
    how: dict[str, Any] = {} if name == "tiny-star" else {"layer_grad_scale": recipe.loss.layer_grad_scale}
    chunked = next((context for context in recipe.contexts if context is not None), None)
    if chunked is not None:
        how["context"] = dataclasses.astuple(chunked)  # as training gives it
    torch.compiler.reset()
    compiled = torch.compile(taught.forward, backend=count, dynamic=True, fullgraph=True)
    for rows, samples in ((3, 24_000), (2, 16_400), (4, 33_333), (3, 8_080)):
        lengths = torch.tensor([samples] + [samples - 800] * (rows - 1))
        mask = torch.rand(rows, frames_for(samples)) < 0.4 if "masking" in recipe.loss.weights else None
        compiled(torch.randn(rows, samples) * 0.1, lengths, mask, **how)
    assert len(graphs) == 1
