"""Quantized models in forms that exporters understand: integer weights, plain operators."""

import copy

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from .functional import MIN_STEP
from .modules import QKRProjection, QuantConv2d
from .packed import IntegerWeight, integer_weights, quantized_modules
from .quantizers import LSQQuantizer, quantizers_of
from .runtime import IntegerProduct, integer_copy


class DequantizedWeight(nn.Module):
    """In place of a weight's quantizer: the finished integers, scaled row by row.

    StatsQ's grid of 8 bits, whose odd integers take 9, gets its half level added afterwards.

    Args:
        weight (IntegerWeight): The weight.
    """

    def __init__(self, weight: IntegerWeight) -> None:
        super().__init__()
        integers, scale, offset = weight.for_compute()
        shift = (offset * scale).view(-1, *[1] * (integers.ndim - 1)) if offset else None
        self.register_buffer('shift', shift)
        self.register_buffer('integers', integers)
        self.register_buffer('scale', scale)
        self.register_buffer('zero_points', torch.zeros_like(scale, dtype=torch.int8))

    def forward(self, _: Tensor) -> Tensor:
        """The weight in float32, whatever the latent one is."""
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.integers, self.scale, self.zero_points, 0, -128, 127, torch.int8
        )
        return weight if self.shift is None else weight + self.shift


class PlainLSQ(nn.Module):
    """In place of a :class:`LSQQuantizer`: divide, clip, round and multiply.

    Args:
        quantizer (LSQQuantizer): With its steps set.
    """

    def __init__(self, quantizer: LSQQuantizer) -> None:
        super().__init__()
        self.bounds = quantizer.bounds
        self.columns = quantizer.columns
        self.register_buffer('step', quantizer.broadcast_step().detach().clamp(min=MIN_STEP))
        before, after = (s if s is None else s.detach() for s in quantizer.shifts())
        self.register_buffer('before', before)
        self.register_buffer('after', after)

    def forward(self, x: Tensor) -> Tensor:
        """Quantized input, of the same shape."""
        if self.columns is not None:
            x = x.unflatten(-2, (-1, self.columns))
        x = x if self.before is None else x + self.before
        x = (x / self.step).clamp(*self.bounds).round() * self.step
        x = x if self.after is None else x + self.after
        return x if self.columns is None else x.flatten(-3, -2)


@torch.no_grad()
def portable_copy(model: nn.Module) -> nn.Module:
    """A copy that computes the same with integer weights and without autograd functions.

    Args:
        model (nn.Module): Quantized model, with all steps set.

    Raises:
        ValueError: If the steps are not set.
    """
    if any(not quantizer.is_initialized for quantizer in quantizers_of(model)):
        raise ValueError(
            'The steps of the quantizers are not set yet; load a trained checkpoint or run a batch'
        )
    model = copy.deepcopy(model).cpu()
    for _, module in list(quantized_modules(model)):
        weights = {k: DequantizedWeight(w) for k, w in integer_weights(module).items()}
        if isinstance(module, QKRProjection):
            module.weight_quant, module.product_quant = weights['value'], weights['product']
        else:
            module.weight_quant = weights['weight']
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LSQQuantizer):
                setattr(module, name, PlainLSQ(child))
    model.eval()
    return model


@torch.library.custom_op('vitdown::matmul_integer', mutates_args=())
def matmul_integer(codes: Tensor, integers: Tensor, zero_point: int) -> Tensor:
    """``(codes - zero_point) @ integers`` in int32, as the ONNX operator ``MatMulInteger``.

    Args:
        codes (Tensor): uint8 ``(..., N, I)``.
        integers (Tensor): int8 ``(..., I, O)``.
        zero_point (int): 0 to 255.

    Returns:
        Tensor: int32 ``(..., N, O)``.
    """
    return (codes.int() - zero_point) @ integers.int()


@matmul_integer.register_fake
def _(codes: Tensor, integers: Tensor, zero_point: int) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], integers.shape[-1]), dtype=torch.int32)


class PortableProduct(IntegerProduct):
    """:class:`IntegerProduct` by an operator that exporters know."""

    def prepare(self, integers: Tensor) -> None:
        """See :meth:`IntegerProduct.prepare`."""
        self.register_buffer('integers', integers.T.contiguous(), persistent=False)

    def scaled(self, codes: Tensor) -> Tensor:
        """See :meth:`IntegerProduct.scaled`."""
        return matmul_integer(codes, self.integers, self.zero_point).float() * self.scale

    def of_activations(self, codes: Tensor, others: Tensor) -> Tensor:
        """See :meth:`IntegerProduct.of_activations`."""
        return matmul_integer(codes, others.transpose(-2, -1), self.zero_point)


@torch.no_grad()
def portable_integer_copy(model: nn.Module) -> nn.Module:
    """A copy that multiplies codes by integer weights, as the int8 runtime does.

    The image's convolution, whose steps differ by input channel, gets dequantized weights.

    Args:
        model (nn.Module): Quantized model, with all steps set.

    Raises:
        ValueError: If the steps are not set, or the model's settings don't allow int8 products.
    """
    integer = integer_copy(model)
    for name, module in quantized_modules(model):
        layer = integer.get_submodule(name)
        weights = integer_weights(module)
        if isinstance(module, QuantConv2d):
            layer.weight_quant = DequantizedWeight(weights['weight'])
            continue
        zero_point = layer.input_quant.zero_point
        products = {part: PortableProduct(w, zero_point) for part, w in weights.items()}
        if isinstance(module, QKRProjection):
            layer.value.product, layer.key.product = products['value'], products['product']
        else:
            layer.product = products['weight']
    return integer
