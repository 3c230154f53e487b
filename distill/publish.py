"""``rd-distill publish``: a student folder becomes one that a model hub shows and transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint
from reuse_distill.student.checkpoints.checkpoint import (
    CONFIG,
    EXTRACTOR,
    MODEL_TYPE,
    PREPROCESSOR,
    TRAINING,
    WEIGHTS,
    is_packed,
)
from reuse_distill.student.cost import macs_per_second
from reuse_distill.student.foreign.foreign_files import read_json

MODULE = "modeling_reuse_distill.py"
CODE = '''"""Loads this student in transformers with ``trust_remote_code=True``; needs the package ``reuse-distill``."""

from reuse_distill.hf import ReuseDistillConfig, ReuseDistillModel

__all__ = ["ReuseDistillConfig", "ReuseDistillModel"]
'''
AUTO_MAP = {
    "AutoConfig": f"{MODULE.removesuffix('.py')}.ReuseDistillConfig",
    "AutoModel": f"{MODULE.removesuffix('.py')}.ReuseDistillModel",
}
UNMEASURED = "unmeasured"


def publish(
    folder: Path, target: Path, *, licence: str | None = None, name: str | None = None, metrics: Path | None = None
) -> list[Path]:
    """Write the hub-ready folder ``target`` of the student in ``folder``; returns its files.

    ``licence``: an SPDX identifier, where the student's provenance names none. ``metrics``: the JSON of
    ``rd-distill evaluate``. Raises RdError where the student cannot be read, no licence is known, or ``target`` holds
    something.
    """
    student = load_checkpoint(folder)
    config = read_json(folder / CONFIG)
    known = _licence(folder, config, licence)
    results = None if metrics is None else read_json(metrics)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RdError(f"{target} exists already", hint="give a folder that does not exist, or an empty one")
    target.mkdir(parents=True, exist_ok=True)
    config |= {"model_type": MODEL_TYPE, "architectures": ["ReuseDistillModel"], "auto_map": AUTO_MAP}
    card = model_card(name or folder.resolve().name, student, config, known, _training(folder), results)
    _write_json(target / CONFIG, config)
    _write_json(target / PREPROCESSOR, EXTRACTOR)
    (target / MODULE).write_text(CODE, encoding="utf-8")
    (target / "README.md").write_text(card, encoding="utf-8")
    if results is not None:
        _write_json(target / "evaluation.json", results)
    if is_packed(folder / WEIGHTS):  # transformers reads floats
        from safetensors.torch import save_file

        save_file({key: value.half().contiguous() for key, value in student.state_dict().items()}, target / WEIGHTS)
        shutil.copymode(target / CONFIG, target / WEIGHTS)  # safetensors writes for the owner alone
    else:
        shutil.copyfile(folder / WEIGHTS, target / WEIGHTS)
    if (folder / TRAINING).is_file():
        shutil.copyfile(folder / TRAINING, target / TRAINING)
    return sorted(target.iterdir())


def _licence(folder: Path, config: dict[str, Any], given: str | None) -> str:
    provenance = config.get("provenance")
    own = provenance.get("licence") if isinstance(provenance, dict) else None
    if given is not None and own is not None and given.lower() != str(own).lower():
        raise RdError(
            f"--licence {given}, but {folder / CONFIG} says {own}",
            hint="leave --licence out, or correct the provenance",
        )
    if given is None and own is None:
        raise RdError(
            f"{folder} does not say under which licence its weights are",
            hint="add --licence, such as apache-2.0; teacher and data may limit the choice",
        )
    return str(given or own).lower()


def _training(folder: Path) -> dict[str, Any]:
    return read_json(folder / TRAINING) if (folder / TRAINING).is_file() else {}


def model_card(
    name: str,
    student: Student,
    config: dict[str, Any],
    licence: str,
    training: dict[str, Any],
    results: dict[str, Any] | None,
) -> str:
    """README.md of the folder: front matter, what it is, how to use it, how it was made and what was measured."""
    shape = student.config
    millions = sum(parameter.numel() for parameter in student.parameters()) / 1e6
    mmacs = sum(macs_per_second(shape, seconds=10).values()) / 1e6
    front = ["---", f"license: {licence}", "library_name: transformers", "pipeline_tag: feature-extraction"]
    front += ["tags:", *(f"- {tag}" for tag in ("speech", "distillation", "reuse-distill")), "---"]
    rows = [
        ("parameters", f"{millions:.2f} M"),
        ("layers", f"{shape.layers} of width {shape.width}, {shape.heads} heads"),
        ("layers that reuse an attention map", ", ".join(map(str, shape.reuse_layers)) or "none"),
        ("front end", shape.front_end),
        ("streams exactly", "yes" if shape.streamable else "no"),
        ("multiply-accumulates per second of audio (10 s at once)", f"{mmacs:.0f} M, computed from the shape"),
    ]
    parts = [
        "\n".join(front),
        f"# {name}",
        "A speech encoder distilled with `reuse-distill`: 16 kHz audio in, one feature vector every 20 ms out.",
        _table(("what", "value"), rows),
        "## Use",
        "```python\nimport reuse_distill.hf  # or: trust_remote_code=True\n"
        "from transformers import AutoFeatureExtractor, AutoModel\n\n"
        f'model = AutoModel.from_pretrained("{name}")\n'
        f'extractor = AutoFeatureExtractor.from_pretrained("{name}")\n'
        'inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt")\n'
        "features = model(**inputs).last_hidden_state  # (batch, frames, channels)\n```",
        _for_devices(name, "streaming" if shape.streamable else "offline"),
        "## Training",
        _table(("what", "value"), _training_rows(config, training)),
        "## Evaluation",
        f"```json\n{json.dumps(results, indent=1)}\n```" if results is not None else f"{UNMEASURED.capitalize()}.",
        "## Licence",
        f"`{licence}`, of the weights. The package is Apache-2.0.",
    ]
    return "\n\n".join(parts) + "\n"


def _for_devices(name: str, mode: str) -> str:
    """From the hub to a device: ``rd-export`` takes folders and downloads nothing."""
    folder = name.rpartition("/")[2]
    fetch = f"hf download {name} --local-dir {folder}\n" if "/" in name else ""
    commands = f"{fetch}rd-export {folder} --target onnx --mode {mode} --output bundle\nrd-stream talk.wav bundle"
    return f"For devices:\n\n```sh\n{commands}\n```"


def _training_rows(config: dict[str, Any], training: dict[str, Any]) -> list[tuple[str, str]]:
    recipe, teacher = training.get("recipe"), training.get("teacher")
    rows = [
        ("recipe", recipe.get("name") if isinstance(recipe, dict) else recipe),
        ("teacher", teacher.get("name") if isinstance(teacher, dict) else teacher),
        ("steps", training.get("steps")),
        ("hours of audio seen", training.get("audio_hours")),
        ("seed", training.get("seed")),
    ]
    provenance = config.get("provenance")
    rows += list(provenance.items()) if isinstance(provenance, dict) else []
    return [(str(key), _plain(value)) for key, value in rows if value is not None] or [("provenance", "not recorded")]


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")[:300]


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ("---", "---"), *rows)])


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
