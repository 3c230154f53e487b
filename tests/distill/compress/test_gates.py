"""Gates: what they count, that closed ones are gone and open ones multiplied in, and that training meets its target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.compress.gate_kinds import HardConcreteGates
from reuse_distill.distill.compress.gates import GatedStudent, GateSettings, ParameterCount, gate_sites, without_closed
from reuse_distill.distill.compress.low_rank import decompose, factored
from reuse_distill.distill.compress.methods import TRAINED, gated
from reuse_distill.distill.compress.width_pruning import prunable_convolutions, remove_channels
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint, save_checkpoint

FAST = ("data.batch_size=2", "data.workers=1", "data.crop_seconds=0.6", "gates.lr=0.6", "training.checkpoint_every=20")


@pytest.fixture(scope="module")
def wave() -> torch.Tensor:
    return torch.randn(1, 9_000, generator=torch.Generator().manual_seed(1)) * 0.1


def drawn(student: Student, share: float = 0.4) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Masks that close a share of every site's gates, and values of all gates, 0 where closed."""
    generator = torch.Generator().manual_seed(7)
    kept, values = {}, {}
    for site in gate_sites(student):
        order = torch.randperm(site.count, generator=generator)
        kept[site.key] = order >= min(site.count - 1, round(share * site.count))
        values[site.key] = torch.rand(site.count, generator=generator).clamp(min=0.1) * kept[site.key]
    return kept, values


def low_rank(small: Student) -> Student:
    found = decompose(small)
    return factored(small, found, dict.fromkeys(found, 6))


STUDENTS = {
    "stream": lambda toy, _: toy(),
    "published": lambda toy, _: toy("tiny", lookahead_frames=7),
    "mel": lambda toy, _: toy(conv_layers=((12, 3, 1), (32, 3, 2)), front_end="mel"),
    "low-rank": lambda toy, _: low_rank(toy()),
    "whisper": lambda toy, shape: toy(**shape, context=None),
    "pre-norm": lambda toy, _: toy("tiny", lookahead_frames=7, norm_first=True, reuse_layers=(), head_width=None),
}


@pytest.mark.parametrize("name", list(STUDENTS))
def test_what_is_closed_can_go(make_toy, whisper_shape, wave: torch.Tensor, name: str) -> None:
    student = STUDENTS[name](make_toy, whisper_shape)
    kept, values = drawn(student)

    class Fixed(torch.nn.Module):
        def values(self, _: Student) -> dict[str, torch.Tensor]:
            return values

    whole = GatedStudent(student, Fixed(), GateSettings(), 0.3)  # type: ignore[arg-type]
    pruned = without_closed(student, kept, values)
    with torch.no_grad():
        expected, ungated = whole(wave).layers, student(wave).layers
        for left, right in zip(pruned(wave).layers, expected, strict=True):
            assert torch.allclose(left, right, atol=2e-5)
    assert (expected[-1] - ungated[-1]).abs().max() > 0.01, "gates change something"
    left = ParameterCount(student).left({key: mask.sum().float() for key, mask in kept.items()})
    assert int(left) == sum(p.numel() for p in pruned.parameters()), "counted as they are"


def test_sites(make_toy) -> None:
    assert prunable_convolutions(make_toy().config) == (2, 3, 4, 5, 6, 7, 8)  # a norm over channels behind the first
    assert prunable_convolutions(make_toy("tiny", lookahead_frames=7).config)[0] == 1
    keys = [site.key for site in gate_sites(make_toy())]
    assert [key for key in keys if key.startswith("heads")] == ["heads_1", "heads_3"], "one gate for a map's layers"
    with pytest.raises(RdError, match="channels of convolution 9 cannot be removed"):
        remove_channels(make_toy(), {9: [0]})
    with pytest.raises(RdError, match="convolution 2 has channels"):
        remove_channels(make_toy(), {2: [8]})
    with pytest.raises(RdError, match="would be left without channels"):
        remove_channels(make_toy(), {2: list(range(8))})


def test_hard_concrete(small: Student) -> None:
    settings = GateSettings(closed_at_start=0.3)
    gates = HardConcreteGates(gate_sites(small), settings)
    torch.manual_seed(0)
    many = torch.cat([gates.values(small)["units_1"] for _ in range(400)])
    assert float((many > 0).float().mean()) == pytest.approx(0.7, abs=0.02), "P(z > 0)"
    assert many.min() == 0 and many.max() == 1
    assert float(gates.open(small)["units_1"].detach()) == pytest.approx(0.7 * 48, rel=1e-5)
    gates.eval()
    assert torch.equal(gates.values(small)["units_1"], gates.values(small)["units_1"]), "nothing is drawn at the end"
    with torch.no_grad():
        gates.logits["units_1"].fill_(9.0)
        gates.logits["units_2"].fill_(-9.0)
    assert gates.final(small)["units_1"].min() == 1 and gates.final(small)["units_2"].max() == 0


@pytest.mark.parametrize("kind", sorted(TRAINED))
def test_the_lagrangian_alone_meets_its_target(small: Student, kind: str) -> None:
    small.requires_grad_(True)
    whole = gated(small, kind, GateSettings(), 0.4)
    groups = whole.parameter_groups(1e-3)
    for group in groups:
        group["lr"] = 1e-3 * group.get("scale", 1.0)
    optimiser, steps = torch.optim.AdamW(groups, betas=(0.9, 0.98)), 100
    start = [group["lr"] for group in groups]
    for step in range(steps):
        for group, lr in zip(optimiser.param_groups, start, strict=True):
            group["lr"] = lr * (1 - step / steps)
        optimiser.zero_grad()
        whole.penalty(step / steps).backward()
        optimiser.step()
    pruned = whole.pruned()
    left = sum(p.numel() for p in pruned.parameters())
    assert abs(1 - left / whole.count.whole - 0.4) < 0.01
    assert whole.record()["removed_by_gates"] == pytest.approx(0.4, abs=0.03)
    heads = pruned.config.layer_heads or (4,) * 4
    assert heads[0] == heads[1] and heads[2] == heads[3], "a map's layers lose the same heads"


def test_a_target_that_is_missed_is_an_error(small: Student) -> None:
    whole = gated(small, "gates", GateSettings(), 0.5)
    with pytest.raises(RdError, match=r"the gates remove 4\.\d% of the parameters, the target is 50\.0%"):
        whole.pruned()
    with pytest.raises(RdError, match=r"gates can remove .* at most"):
        gated(small, "gates", GateSettings(), 0.97)


def test_compress_with_gates_and_a_killed_run(small: Student, audio: Path, tmp_path: Path, capsys) -> None:
    checkpoint = save_checkpoint(tmp_path / "student", small)
    words = ["compress", "gates", str(checkpoint), "--ratio", "0.4", "--data", str(audio), "--gate-steps", "50"]
    words += FAST
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    whole = load_checkpoint(tmp_path / "whole/student")
    count = [sum(p.numel() for p in one.parameters()) for one in (small, whole)]
    assert abs(1 - count[1] / count[0] - 0.4) < 0.01
    training = json.loads((tmp_path / "whole/step-01/gates/student/training.json").read_text())
    assert training["gates"]["target"] == 0.4 and sum(training["gates"]["open"].values()) > 0
    capsys.readouterr()

    from reuse_distill.distill.training.loop import Loop

    step = Loop._step

    def killed(self: Loop, batches):
        if self.step == 45 and self.settings.gates:
            raise KeyboardInterrupt
        return step(self, batches)

    with pytest.MonkeyPatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(Loop, "_step", killed)
        raise SystemExit(main([*words, "--output", str(tmp_path / "cut")]))
    assert (tmp_path / "cut/step-01/gates/state.pt").exists(), "saved at step 40"
    assert not (tmp_path / "cut/step-01/gates/student").exists()
    assert main([*words, "--output", str(tmp_path / "cut"), "--resume"]) == 0
    resumed = load_checkpoint(tmp_path / "cut/student")
    assert resumed.config == whole.config
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    shutil.rmtree(tmp_path / "cut")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gates", "--ratio", "0.5"), "gates with --gate-steps 0"),
        (("gates", "--ratio", "0.5", "--gate-steps", "5", "--schedule", "2"), "gates with --gate-steps 5 and"),
        (("rows", "--ratio", "0.5", "--gate-steps", "5"), "--gate-steps 5 with rows"),
        (("rows+gates", "--ratio", "0.5", "--gate-steps", "5"), "put gates or pinch first"),
        (("gates", "--ratio", "0.5", "--gate-steps", "5"), "no audio to recover"),
        (("gates", "--ratio", "0.5", "--gate-steps", "5", "gates.lr=0"), "gates.lr is 0"),
        (("gates", "--ratio", "0.5", "--gate-steps", "5", "gates.stretch=[0, 2]"), "gates.stretch is"),
    ],
)
def test_options_that_are_not_possible(small: Student, tmp_path: Path, capsys, words, message: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "student", small)
    method, *rest = words
    assert main(["compress", method, str(checkpoint), *rest, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
