"""Student folders in transformers: importing this module registers them with ``AutoModel`` and ``AutoConfig``.

>>> import reuse_distill.hf
>>> from transformers import AutoFeatureExtractor, AutoModel
>>> model = AutoModel.from_pretrained("student/")
>>> inputs = AutoFeatureExtractor.from_pretrained("student/")(wave, sampling_rate=16_000, return_tensors="pt")
>>> features = model(**inputs).last_hidden_state          # (B, F, C), one row every 20 ms

Nothing is executed that a folder brings along: ``trust_remote_code`` is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, cached_file

from reuse_distill.runtime.untrusted_input import from_dict
from reuse_distill.student import StudentConfig
from reuse_distill.student.checkpoints.checkpoint import MODEL_TYPE, WEIGHTS, is_packed, unpacked
from reuse_distill.student.checkpoints.public import build_strictly
from reuse_distill.student.position import WeightNormConv
from reuse_distill.student.whisper import build_student

__all__ = ["ReuseDistillConfig", "ReuseDistillModel", "ReuseDistillOutput"]

PLACES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
CONV_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


class ReuseDistillConfig(PretrainedConfig):
    """``config.json`` of a student folder: the section ``student`` is everything that shapes it."""

    model_type = MODEL_TYPE

    def __init__(self, student: dict[str, Any] | None = None, **others: Any) -> None:
        self.student = student
        if not {"dtype", "torch_dtype"} & others.keys():
            others["dtype"] = "float32"  # folders may store half precision: they are computed in float32
        super().__init__(**others)

    @property
    def shape(self) -> StudentConfig:
        """The section as a StudentConfig. Raises RdError where it is none."""
        return from_dict(StudentConfig, self.student, where="config.json: student")


@dataclass
class ReuseDistillOutput(ModelOutput):
    """Features of whole utterances.

    ``last_hidden_state`` [B, F, C] of the last layer; ``hidden_states``: what layer 1 sees and the output of every
    layer, where they are wanted; ``projections`` [B, F, W] of every head, for students that have heads.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    projections: tuple[Tensor, ...] | None = None


class ParametrisedConv(torch.nn.Module):
    """The positional convolution under the names that transformers gives ``weight_g`` and ``weight_v`` as it loads."""

    def __init__(self, conv: WeightNormConv) -> None:
        super().__init__()
        self.groups, self.bias = conv.groups, conv.bias
        self.parametrizations = torch.nn.Module()
        self.parametrizations.weight = torch.nn.Module()
        self.parametrizations.weight.original0 = conv.weight_g  # [1, 1, K]
        self.parametrizations.weight.original1 = conv.weight_v  # [C, C / groups, K]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, F + K - 1] -> [B, C, F]."""
        gain, direction = self.parametrizations.weight.original0, self.parametrizations.weight.original1
        weight = direction * (gain / direction.square().sum((0, 1), keepdim=True).sqrt())
        return torch.nn.functional.conv1d(x, weight, self.bias, groups=self.groups)


class ReuseDistillModel(PreTrainedModel):
    """A student as transformers' models are called."""

    config_class = ReuseDistillConfig
    base_model_prefix = "student"
    main_input_name = "input_values"
    _keys_to_ignore_on_load_unexpected = (r"\.int8_scale$",)  # read by ``restore_int8``

    def __init__(self, config: ReuseDistillConfig) -> None:
        super().__init__(config)
        self.student = build_student(config.shape)
        positions = self.student.encoder.pos_conv
        if isinstance(positions[0], WeightNormConv):
            positions[0] = ParametrisedConv(positions[0])
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """A student initialises itself."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As transformers', with weights stored in int8 and the constants that no file holds (filters of a log-mel).

        transformers takes int8 for the weights themselves; version 5 makes the model without memory at first and leaves
        such constants uninitialised. Raises RdError for int8 weights and scales that do not belong together.
        """
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.restore_constants()
        source = arguments[0] if arguments else options.get("pretrained_model_name_or_path")
        places = {name: options[name] for name in PLACES if name in options}
        weights = source and cached_file(source, WEIGHTS, _raise_exceptions_for_missing_entries=False, **places)
        if weights and is_packed(Path(weights)):
            model.restore_int8(Path(weights))
        return loaded

    def restore_int8(self, weights: Path) -> None:
        """Every parameter as ``student.checkpoints.checkpoint`` reads it."""
        state = unpacked(load_file(weights), where=str(weights))
        stored = build_strictly(self.config.shape, state, where=str(weights)).state_dict()
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                for theirs, ours in CONV_NAMES.items():
                    name = name.replace(theirs, ours)
                parameter.copy_(stored[name])

    def restore_constants(self) -> None:
        """Buffers that are not part of a checkpoint, as a new student has them."""
        kept = self.student.state_dict().keys()
        with torch.device("cpu"), torch.no_grad():
            fresh = dict(build_student(self.config.shape).named_buffers())
            for name, buffer in self.student.named_buffers():
                if name not in kept:
                    buffer.copy_(fresh[name])

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> ReuseDistillOutput | tuple[Any, ...]:
        """``input_values`` [B, T] at 16 kHz in -1..1; ``attention_mask`` [B, T] 1 on the samples of each utterance."""
        whole = attention_mask is None or bool(attention_mask.all())
        lengths = None if attention_mask is None or whole else attention_mask.sum(-1)
        result = self.student(input_values, lengths)
        output = ReuseDistillOutput(
            last_hidden_state=result.layers[-1],
            hidden_states=(result.encoder_input, *result.layers) if output_hidden_states else None,
            projections=tuple(result.projections) or None,
        )
        return output if return_dict is not False else output.to_tuple()


AutoConfig.register(MODEL_TYPE, ReuseDistillConfig, exist_ok=True)
AutoModel.register(ReuseDistillConfig, ReuseDistillModel, exist_ok=True)
