"""The files of a transformers folder: bounded JSON, and weights in one file or several, safetensors or pickled.

Nothing is executed, and no name in a file leads out of the folder. Parameters beside the encoder, pre-training and task
heads, are recognised by their names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError
from reuse_distill.student.checkpoints.unpickle import read_torch_file
from torch import Tensor

# As transformers looks for them; the second of a pair lists the files that the weights are spread over.
WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
MOST_JSON_BYTES = 32 << 20  # the index of a large model has a line per parameter
MOST_SHARDS = 1000
DAMAGED = "the file is damaged or cut short: copy it again"
# Prefix of a parameter -> what it belongs to. Of the kinds in ``TASKS`` a head can be made.
PREFIXES: tuple[tuple[str, str], ...] = (
    ("final_proj.", "projection"),  # ContentVec; fairseq's HuBERT predicts its clusters with it
    ("lm_head.", "ctc"),
    ("projector.", "classify"),
    ("classifier.", "classify"),
    ("layer_weights", "classify"),
    ("tdnn.", "xvector"),
    ("objective.", "xvector"),
    ("feature_extractor.weight", "xvector"),
    ("feature_extractor.bias", "xvector"),
    ("project_q.", "pretraining"),
    ("project_hid.", "pretraining"),
    ("quantizer.", "pretraining"),
    ("speaker_proj.", "pretraining"),
    ("label_embeddings_concat", "pretraining"),
    ("label_embs_concat", "pretraining"),
    ("layer_norm_for_extract.", "pretraining"),
    ("dropout_features.", "pretraining"),
    ("target_glu.", "pretraining"),
    ("decoder.", "decoder"),
    ("proj_out.", "decoder"),
)
TASKS = ("projection", "ctc", "classify", "xvector")


def read_json(file: Path) -> dict[str, Any]:
    """The object in ``file``. Raises RdError where it is missing, too large, damaged or no object."""
    try:
        size = file.stat().st_size
        if size > MOST_JSON_BYTES:
            raise RdError(f"{file}: {size} bytes, at most {MOST_JSON_BYTES} are read", hint="is this the right file?")
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RdError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise RdError(f"{file} is not JSON: {error}", hint=DAMAGED) from None
    if not isinstance(data, dict):
        raise RdError(f"{file} is not a JSON object but {type(data).__name__}", hint=DAMAGED)
    return data


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights. Raises RdError where there are none, or one of several is missing."""
    first = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise RdError(f"{folder} has no weights", hint=f"one of {', '.join(WEIGHTS)}")
    if first.suffix != ".json":
        return [first]
    names = read_json(first).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise RdError(f"{first} is not an index of weights: no weight_map of file names", hint=DAMAGED)
    files = sorted({*names.values()})
    if len(files) > MOST_SHARDS:
        raise RdError(f"{first} names {len(files)} files of weights, at most {MOST_SHARDS} are read")
    for name in files:
        if Path(name).name != name or name in ("", ".", ".."):
            raise RdError(f"{first} names {name!r}, which is not a file of this folder", hint="it is not opened")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing or not files:
        examples = ", ".join(missing[:3]) or "all"
        raise RdError(
            f"{folder}: {len(missing)} of {len(files)} files of weights are missing: {examples}", hint="copy them"
        )
    return [folder / name for name in files]


def read_weights(files: list[Path], selected: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
    """Every tensor whose name is ``wanted``. Raises RdError for damaged files and for what is no tensor."""
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _safetensors(file, selected) if file.suffix == ".safetensors" else _pickled(file, selected)
    return weights


def _safetensors(file: Path, selected: Callable[[str], bool]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys() if selected(name)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RdError(f"{file}: damaged or cut short ({error})", hint="copy it again") from None


def _pickled(file: Path, selected: Callable[[str], bool]) -> dict[str, Tensor]:
    state = read_torch_file(file)
    if not isinstance(state, dict):
        raise RdError(f"{file} holds {type(state).__name__}, not named parameters", hint=DAMAGED)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise RdError(f"{file}: {name!r:.60} is not a tensor", hint="get the weights as safetensors")
    return {name: value for name, value in state.items() if selected(name)}


def head_kind(name: str) -> str | None:
    """What the parameter ``name`` beside the encoder belongs to; None for one of the encoder."""
    return next((kind for prefix, kind in PREFIXES if name.startswith(prefix)), None)


def heads_in(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Kind -> parameters by name, of all that stand beside the encoder."""
    heads: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        kind = head_kind(name)
        if kind is not None:
            heads.setdefault(kind, {})[name] = value
    if "xvector" in heads:  # its projector and classifier have the names of a classification head's
        heads["xvector"] |= heads.pop("classify", {})
    return heads


def left_out(heads: Mapping[str, Mapping[str, Tensor]]) -> str:
    """A line for the log on what stands beside the encoder; empty where nothing does."""
    parts = [f"{kind} ({', '.join(sorted({name.split('.')[0] for name in one}))})" for kind, one in heads.items()]
    own = ", --head own exports it" if any(kind in TASKS for kind in heads) else ""
    return f"beside the encoder, not part of it: {'; '.join(parts)}{own}" if parts else ""
