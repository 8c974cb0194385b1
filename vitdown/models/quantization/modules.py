from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Quantizer: TypeAlias = nn.Module


class CachedWeights(nn.Module):
    """Keeps quantized weights between the forward passes of an evaluation.

    A change of the weight or of its quantizer in place, by an optimizer or a checkpoint, is noticed
    by the tensors' versions. Changes by way of ``.data`` have none: call ``train()`` or ``eval()``
    after them. Tensors made in inference mode have none either, and nothing is kept of them.
    """

    def cached(self, name: str, quantizer: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, computed once for these contents of the weight and its quantizer."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        tensors = (self.weight, *quantizer.parameters(), *quantizer.buffers())
        if any(tensor.is_inference() for tensor in tensors):
            return compute()
        key = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        cache = self.__dict__.setdefault('_weights', {})
        if cache.get(name, (None, None))[0] != key:
            cache[name] = key, compute()
        return cache[name][1]

    def train(self, mode: bool = True) -> 'CachedWeights':
        self.__dict__.pop('_weights', None)
        return super().train(mode)


class QuantLinear(CachedWeights, nn.Linear):
    """Linear layer with quantized weights and input.

    Args:
        linear (nn.Linear): Layer whose parameters are taken over. Without a bias, one that starts
            at zero is added, as the official layer has one.
        weight_quant (nn.Module): Quantizer of the weight.
        input_quant (nn.Module): Quantizer of the input.
        is_edge (bool): Whether this is a classifier, whose bits are others than the blocks'.
    """

    def __init__(
        self,
        linear: nn.Linear,
        weight_quant: Quantizer,
        input_quant: Quantizer,
        is_edge: bool = False,
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, device='meta')
        self.weight = linear.weight
        self.is_edge = is_edge
        self.optional_state: tuple[str, ...] = ()
        self.bias = linear.bias
        if linear.bias is None:
            self.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
            self.optional_state = ('bias',)
        self.weight_quant = weight_quant
        self.input_quant = input_quant

    def quantized_weight(self) -> Tensor:
        """The weight that the layer computes with, ``(O, I)`` float32."""
        return self.cached('weight', self.weight_quant, lambda: self.weight_quant(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., I)`` to ``(..., O)``."""
        return F.linear(self.input_quant(x), self.quantized_weight(), self.bias)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        for name in self.optional_state:
            if prefix + name not in state_dict:
                state_dict = {**state_dict, prefix + name: getattr(self, name)}
        super()._load_from_state_dict(state_dict, prefix, *args)


class QuantConv2d(CachedWeights, nn.Conv2d):
    """Convolution with quantized weights and input.

    Args:
        conv (nn.Conv2d): Layer whose parameters are taken over.
        weight_quant (nn.Module): Quantizer of the weight.
        input_quant (nn.Module): Quantizer of the input.
    """

    def __init__(self, conv: nn.Conv2d, weight_quant: Quantizer, input_quant: Quantizer) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device='meta',
        )
        self.weight = conv.weight
        self.bias = conv.bias
        self.weight_quant = weight_quant
        self.input_quant = input_quant

    def quantized_weight(self) -> Tensor:
        """The weight that the layer computes with, ``(O, I, kh, kw)`` float32."""
        return self.cached('weight', self.weight_quant, lambda: self.weight_quant(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, I, H, W)`` to ``(B, O, H', W')``."""
        return self._conv_forward(self.input_quant(x), self.quantized_weight(), self.bias)


class Attending(nn.Module):
    """Self-attention's first half, for layers that return queries, keys and values."""

    def logits_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, H, N, N)`` before scaling and values ``(B, H, N, v)`` of ``(B, N, C)``."""
        query, key, value = self(x)
        return attention_logits(query, key), value


class QuantQKV(Attending, QuantLinear):
    """Queries, keys and values of quantized attention, each quantized again.

    Args:
        linear (nn.Linear): Layer that computes all three.
        num_heads (int): Number of heads H.
        part_sizes (tuple[int, int, int]): Rows of queries, keys and values.
        weight_quant (nn.Module): Quantizer of the weight.
        input_quant (nn.Module): Quantizer of the tokens.
        query_quant (nn.Module): Quantizer of ``(B, N, H * d)`` queries.
        key_quant (nn.Module): Quantizer of ``(B, N, H * d)`` keys.
        value_quant (nn.Module): Quantizer of ``(B, N, H * v)`` values.
    """

    def __init__(
        self,
        linear: nn.Linear,
        num_heads: int,
        part_sizes: tuple[int, int, int],
        weight_quant: Quantizer,
        input_quant: Quantizer,
        query_quant: Quantizer,
        key_quant: Quantizer,
        value_quant: Quantizer,
    ) -> None:
        super().__init__(linear, weight_quant, input_quant)
        self.num_heads = num_heads
        self.part_sizes = part_sizes
        self.query_quant = query_quant
        self.key_quant = key_quant
        self.value_quant = value_quant

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys ``(B, H, N, d)``, values ``(B, H, N, v)`` of tokens ``(B, N, C)``."""
        parts = super().forward(x).split(self.part_sizes, dim=-1)
        quantizers = (self.query_quant, self.key_quant, self.value_quant)
        return tuple(
            quantize(part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for quantize, part in zip(quantizers, parts)
        )


class QKRProjection(Attending, CachedWeights, nn.Linear):
    """Query-key reparametrisation (Sec. 4.2): the product of both weights is quantized per head.

    Queries are the quantized tokens themselves, for all heads the same; the keys of head i are
    ``P_i x`` with ``P_i = W_q[i].T @ W_k[i]``. The biases of queries and keys fall away; they stay
    parameters, so that names and shapes are those of the full-precision layer.

    Args:
        linear (nn.Linear): Layer that computes queries, keys and values.
        num_heads (int): Number of heads H.
        part_sizes (tuple[int, int, int]): Rows of queries, keys and values.
        weight_quant (nn.Module): Quantizer of the value weight.
        product_quant (nn.Module): Quantizer of the stacked products ``(H * C, C)``.
        input_quant (nn.Module): Quantizer of the tokens.
        key_quant (nn.Module): Quantizer of ``(B, N, H, C)``.
        value_quant (nn.Module): Quantizer of ``(B, N, H * v)`` values.
    """

    def __init__(
        self,
        linear: nn.Linear,
        num_heads: int,
        part_sizes: tuple[int, int, int],
        weight_quant: Quantizer,
        product_quant: Quantizer,
        input_quant: Quantizer,
        key_quant: Quantizer,
        value_quant: Quantizer,
    ) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device='meta')
        self.weight = linear.weight
        self.bias = linear.bias
        self.num_heads = num_heads
        self.part_sizes = part_sizes
        self.weight_quant = weight_quant
        self.product_quant = product_quant
        self.input_quant = input_quant
        self.key_quant = key_quant
        self.value_quant = value_quant

    def value_weight(self) -> Tensor:
        """Latent weight of the values, ``(H * v, C)``."""
        return self.weight[-self.part_sizes[2] :]

    def value_bias(self) -> Tensor | None:
        """Bias of the values, ``(H * v,)``."""
        return None if self.bias is None else self.bias[-self.part_sizes[2] :]

    def product(self) -> Tensor:
        """Latent product of query and key weights, ``(H * C, C)``: rows ``i * C ...`` are P_i."""
        device = self.weight.device.type
        # Counting on the meta device: autocast does not know it.
        with torch.autocast('cpu' if device == 'meta' else device, enabled=False):
            query, key, _ = self.weight.split(self.part_sizes)
            query, key = (w.unflatten(0, (self.num_heads, -1)) for w in (query, key))
            return (query.transpose(1, 2) @ key).flatten(0, 1)

    def quantized_value_weight(self) -> Tensor:
        """The value weight that the layer computes with, ``(H * v, C)``."""
        return self.cached(
            'value', self.weight_quant, lambda: self.weight_quant(self.value_weight())
        )

    def quantized_product(self) -> Tensor:
        """The product that the layer computes with, ``(H * C, C)``."""
        return self.cached(
            'product', self.product_quant, lambda: self.product_quant(self.product())
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, 1, N, C)``, keys ``(B, H, N, C)`` and values ``(B, H, N, v)``."""
        x = self.input_quant(x)
        value = F.linear(x, self.quantized_value_weight(), self.value_bias())
        value = self.value_quant(value).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key = F.linear(x, self.quantized_product()).unflatten(-1, (self.num_heads, -1))
        return x[:, None], self.key_quant(key).transpose(1, 2), value


def attention_logits(query: Tensor, key: Tensor) -> Tensor:
    """Products of queries and keys.

    Args:
        query (Tensor): ``(B, H, N, C)``, or ``(B, 1, N, C)`` where all heads share them.
        key (Tensor): ``(B, H, M, C)``.

    Returns:
        Tensor: ``(B, H, N, M)``.
    """
    num_heads = key.shape[1]
    if query.shape[1] == num_heads:
        return query @ key.transpose(-2, -1)
    # One product for all heads instead of a copy of the queries for each
    keys = key.transpose(1, 2).flatten(1, 2)
    logits = query[:, 0] @ keys.transpose(-2, -1)
    return logits.unflatten(-1, (-1, num_heads)).permute(0, 3, 1, 2)
