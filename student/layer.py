"""One Transformer layer: attention (computed or reused), then the feed-forward block; norms after them or before."""

from __future__ import annotations

import torch.nn.functional as F
from reuse_distill.student.attention import Attention
from reuse_distill.student.factored import linear
from reuse_distill.student.layer_shape import LayerShape
from reuse_distill.student.relative import PositionGate
from torch import Tensor, nn


class TransformerLayer(nn.Module):
    """y = LN(x + attention(x)), z = LN(y + fc2(gelu(fc1(y)))).

    ``norm_first``: y = x + attention(LN(x)), z = y + fc2(gelu(fc1(LN(y)))).
    """

    def __init__(
        self,
        *,
        shape: LayerShape,
        reuse_mode: str,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        norm_first: bool = False,
        norm_eps: float = 1e-5,
        gated_positions: bool = False,
    ) -> None:
        super().__init__()
        width, gated = shape.width, gated_positions and shape.computes
        self.self_attn = Attention(shape, reuse_mode=reuse_mode, dropout=attention_dropout)
        self.norm_first = norm_first
        self.gate = PositionGate(shape.heads, shape.head_dim) if gated else None
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = linear(*shape.size("fc1"), shape.rank("fc1"))
        self.fc2 = linear(*shape.size("fc2"), shape.rank("fc2"))
        self.final_layer_norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def forward(
        self, x: Tensor, source: Tensor | None, bias: Tensor | None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, F, C] -> ([B, F, C], last computed map [B, H, F, F]).

        ``positions`` [1, H, F, F]: relative position bias, of which each query takes its gate's share.
        """
        inner = self.before_attention(x)
        attended, computed = self.self_attn(inner, source, self.gated(inner, bias, positions))
        return self.after_attention(x, attended), computed

    def before_attention(self, x: Tensor) -> Tensor:
        """What attention sees of ``x``."""
        return self.self_attn_layer_norm(x) if self.norm_first else x

    def gated(self, inner: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor | None:
        """What is added to the scores: the mask ``bias`` and the gated ``positions``."""
        if self.gate is None or positions is None:
            return bias
        gated = self.gate(inner) * positions
        return gated if bias is None else gated + bias

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual, norm and feed-forward block; shared by the offline forward and the streaming step."""
        x = x + self.dropout(attended)
        x = x if self.norm_first else self.self_attn_layer_norm(x)
        inner = self.final_layer_norm(x) if self.norm_first else x
        inner = self.activation_dropout(F.gelu(self.fc1(inner)))
        x = x + self.dropout(self.fc2(inner))
        return x if self.norm_first else self.final_layer_norm(x)
