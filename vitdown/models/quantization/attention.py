import torch.nn.functional as F
from mmpretrain.models.utils import WindowMSA
from torch import Tensor, nn

from ..layers import MultiheadAttention
from ..layers.window_attention import FusedWindowMSA
from .modules import attention_logits


class QuantMultiheadAttention(MultiheadAttention):
    """:class:`MultiheadAttention` with quantized operands in every matrix product.

    ``qkv`` is a :class:`QuantQKV` or :class:`QKRProjection`, ``proj`` a :class:`QuantLinear`.
    Made of a full-precision layer by :func:`quantize_attention`.
    """

    prob_quant: nn.Module

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized queries, keys and values of tokens ``(B, N, C)``.

        With query-key reparametrisation all heads share the queries ``(B, 1, N, C)``, and keys are
        ``(B, H, N, C)``.
        """
        return self.qkv(x)

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        need_weights: bool | str = False,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
        """See :meth:`MultiheadAttention.mix`; the weights are quantized, too."""
        if need_weights not in (False, True, 'factors'):
            raise ValueError(f"need_weights must be a bool or 'factors', got {need_weights!r}")
        out, weights = self._mix_logits(attention_logits(query, key), value, attn_bias)
        if need_weights == 'factors':
            query = query.expand(-1, key.shape[1], -1, -1)
            return out, (query.detach() * self.scale, key.detach())
        return out, weights if need_weights else None

    def forward(
        self, x: Tensor, attn_bias: Tensor | None = None, need_weights: bool | str = False
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
        """Self-attention over tokens ``(B, N, C)``; see :meth:`MultiheadAttention.attend`."""
        if need_weights not in (False, True):
            return super().forward(x, attn_bias, need_weights)
        logits, value = self.qkv.logits_and_values(x)
        out, weights = self._mix_logits(logits, value, attn_bias)
        return self.project_out(out), weights if need_weights else None

    def _mix_logits(
        self, logits: Tensor, value: Tensor, attn_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = logits * self.scale
        logits = logits if attn_bias is None else logits + attn_bias
        weights = self.used_weights(logits.softmax(dim=-1))
        out = F.dropout(weights, self.attn_drop, self.training) @ value
        return out.transpose(1, 2).flatten(2), weights

    def used_weights(self, weights: Tensor) -> Tensor:
        """Quantized softmax weights ``(B, H, N, M)``."""
        return self.prob_quant(weights)


class QuantWindowMSA(WindowMSA):
    """Swin's window attention with quantized operands; see :class:`QuantMultiheadAttention`."""

    prob_quant: nn.Module

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention within windows.

        Args:
            x (Tensor): ``(windows * B, N, C)``.
            mask (Tensor, optional): ``(windows, N, N)``, added to the logits.

        Returns:
            Tensor: Of the shape of ``x``.
        """
        logits, value = self.qkv.logits_and_values(x)
        logits = logits * self.scale
        index = self.relative_position_index
        bias = self.relative_position_bias_table[index.flatten()].unflatten(0, index.shape)
        logits = logits + bias.permute(2, 0, 1)
        if mask is not None:
            windows = logits.unflatten(0, (-1, mask.shape[0])) + mask[:, None]
            logits = windows.flatten(0, 1)
        weights = self.attn_drop(self.prob_quant(self.softmax(logits)))
        out = (weights @ value).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


QUANTIZED_ATTENTION: dict[type, type] = {
    MultiheadAttention: QuantMultiheadAttention,
    WindowMSA: QuantWindowMSA,
    FusedWindowMSA: QuantWindowMSA,
}


def quantize_attention(
    attn: nn.Module, qkv: nn.Module, proj: nn.Module, prob_quant: nn.Module
) -> None:
    """Turn an attention module into its quantized form, in place.

    Args:
        attn (nn.Module): Of a type in :data:`QUANTIZED_ATTENTION`; keeps its other settings.
        qkv (nn.Module): :class:`QuantQKV` or :class:`QKRProjection`.
        proj (nn.Module): :class:`QuantLinear`.
        prob_quant (nn.Module): Quantizer of the softmax output.
    """
    attn.__class__ = QUANTIZED_ATTENTION[type(attn)]
    attn.qkv, attn.proj, attn.prob_quant = qkv, proj, prob_quant
