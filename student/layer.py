"""One post-LN Transformer layer: attention (computed or reused), then the feed-forward block."""

from __future__ import annotations

import torch.nn.functional as F
from reuse_distill.student.attention import Attention
from torch import Tensor, nn


class TransformerLayer(nn.Module):
    """y = LN(x + attention(x)), z = LN(y + fc2(gelu(fc1(y))))."""

    def __init__(
        self,
        *,
        width: int,
        ffn_width: int,
        heads: int,
        reuse: bool,
        reuse_mode: str,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, reuse=reuse, reuse_mode=reuse_mode, dropout=attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def forward(self, x: Tensor, source: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, F, C] -> ([B, F, C], last computed map [B, H, F, F])."""
        attended, computed = self.self_attn(x, source, bias)
        return self.after_attention(x, attended), computed

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual, norm and feed-forward block; shared by the offline forward and the streaming step."""
        x = self.self_attn_layer_norm(x + self.dropout(attended))
        inner = self.activation_dropout(F.gelu(self.fc1(x)))
        return self.final_layer_norm(x + self.dropout(self.fc2(inner)))
