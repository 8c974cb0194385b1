"""OFQ's training graph written down as its official code does it: one operator after another.

The baseline of ``benchmarks/quantization.py``. Works on the parameters of a converted model, so
that both forms can be compared value by value.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.models.quantization import LSQQuantizer, QKRProjection, StatsQuantizer
from vitdown.models.quantization.attention import QuantMultiheadAttention


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """``value`` with the gradient of ``x``."""
    return (value - x).detach() + x


class PlainStatsQ(nn.Module):
    """StatsQ in separate operators; the scale takes the way over the host."""

    def __init__(self, quantizer: StatsQuantizer) -> None:
        super().__init__()
        self.half = 2 ** (quantizer.bits - 1)

    def forward(self, weight: Tensor) -> Tensor:
        scale = 2 * weight.abs().mean(dim=1, keepdim=True).detach().cpu()
        scale = scale.to(weight.device)
        clipped = torch.clamp(weight / scale, -1, 1 - 1e-6)
        codes = torch.round(clipped * self.half - 0.5)
        return straight_through(scale * (codes + 0.5) / self.half, weight)


class PlainLSQ(nn.Module):
    """LSQ as a chain of operators that autograd remembers one by one."""

    def __init__(self, quantizer: LSQQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        quantizer = self.quantizer
        before, after = quantizer.shifts()
        qn, qp = quantizer.bounds
        if before is not None:
            x = x + before.expand_as(x)
        step = straight_through(quantizer.step.clamp(min=1e-5), quantizer.step)
        factor = 1 / math.sqrt(qp * (x.numel() // step.numel()))
        step = (step - step * factor).detach() + step * factor
        step = step.view(quantizer.step_view)
        x = torch.clamp(x / step, qn, qp)
        x = straight_through(x.round(), x) * step
        return x if after is None else x + after.expand_as(x)


class PlainQKRAttention(nn.Module):
    """Attention with the product per head by an einsum and copies between layouts."""

    def __init__(self, attn: QuantMultiheadAttention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor, *_) -> tuple[Tensor, None]:
        attn, qkv = self.attn, self.attn.qkv
        batch, tokens, dims = x.shape
        heads = attn.num_heads
        x = qkv.input_quant(x)
        value = F.linear(x, qkv.weight_quant(qkv.value_weight()), qkv.value_bias())
        value = qkv.value_quant(value)
        value = value.reshape(batch, tokens, heads, dims // heads).permute(0, 2, 1, 3)
        product = qkv.product_quant(qkv.product()).reshape(heads, dims, dims)
        key = torch.einsum('HDC,BCN->BHDN', product, x.transpose(1, 2))
        key = key.permute(0, 3, 1, 2).reshape(batch, tokens, heads, dims)
        key = qkv.key_quant(key).permute(0, 2, 3, 1)
        logits = (x[:, None] @ key) * attn.scale
        weights = attn.prob_quant(logits.softmax(dim=-1))
        out = (weights @ value).transpose(1, 2).reshape(batch, tokens, dims)
        return attn.proj(out), None


def make_plain(model: nn.Module) -> nn.Module:
    """Replace the quantizers and the attention of a converted model, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, StatsQuantizer):
                setattr(module, name, PlainStatsQ(child))
            elif isinstance(child, LSQQuantizer):
                setattr(module, name, PlainLSQ(child))
    for module in list(model.modules()):
        attn = getattr(module, 'attn', None)
        if isinstance(attn, QuantMultiheadAttention) and isinstance(attn.qkv, QKRProjection):
            module.attn = PlainQKRAttention(attn)
    return model
