"""Quantized models that compute with int8 matrix products on the CPU.

Codes of activations and weights are integers, products are summed in int32, steps and scales are
applied afterwards: the same numbers as the model that was trained, to float rounding. Weights of
2, 3 and 4 bits are unpacked to int8 for this.
"""

import copy
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitdown.checkpoint import CheckpointError

from .functional import MIN_STEP
from .modules import Attending, QKRProjection, QuantConv2d, QuantQKV
from .packed import (
    IntegerWeight,
    activation_quantizers,
    check_input,
    latent_weights,
    pack,
    quantized_modules,
    read_packed,
    unpack_weight,
)
from .quantizers import LSQQuantizer


class FixedLSQ(nn.Module):
    """In place of a :class:`LSQQuantizer`: what follows from its parameters is computed once.

    Args:
        quantizer (LSQQuantizer): With its steps set.
    """

    def __init__(self, quantizer: LSQQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.bounds = quantizer.bounds
        steps = quantizer.broadcast_step().detach().clamp(min=MIN_STEP)
        before, after = (s if s is None else s.detach() for s in quantizer.shifts())
        self.register_buffer('steps', steps, persistent=False)
        self.register_buffer('before', before, persistent=False)
        self.register_buffer('after', after, persistent=False)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes as floats; tokens of a map are arranged in rows of columns."""
        x = self.quantizer.arrange(x).float()
        x = x / self.steps if self.before is None else (x + self.before).div_(self.steps)
        return x.clamp_(*self.bounds).round_()

    def forward(self, x: Tensor) -> Tensor:
        """Quantized input, of the same shape."""
        out = self.codes(x).mul_(self.steps)
        out = out if self.after is None else out.add_(self.after)
        return out if self.quantizer.columns is None else out.flatten(-3, -2)


class IntegerInput(FixedLSQ):
    """Codes of activations as unsigned bytes.

    Args:
        quantizer (LSQQuantizer): With one step a token, a column or for all.

    Raises:
        ValueError: See :func:`check_input`.
    """

    def __init__(self, quantizer: LSQQuantizer) -> None:
        check_input(quantizer)
        super().__init__(quantizer)
        # Unsigned activations are what int8 instructions of CPUs take.
        self.zero_point = -self.bounds[0]
        if quantizer.columns is not None:
            assert quantizer.num_tokens is not None  # known since the steps were sized
            self.steps_per_token = self.steps.repeat(quantizer.num_tokens // quantizer.columns, 1)
        else:
            self.steps_per_token = self.steps

    def forward(self, x: Tensor) -> Tensor:
        """``(..., I)`` to uint8 codes, shifted by ``zero_point``."""
        codes = self.codes(x)
        if self.zero_point:
            codes += self.zero_point
        return codes.to(torch.uint8).reshape(x.shape)


class IntegerProduct(nn.Module):
    """``codes @ weight.T`` on the CPU's int8 instructions, scaled row by row.

    Args:
        weight (IntegerWeight): ``(O, I)``.
        zero_point (int): What the codes were shifted by.
    """

    def __init__(self, weight: IntegerWeight, zero_point: int) -> None:
        super().__init__()
        integers, scale, self.offset = weight.for_compute()
        self.zero_point = zero_point
        self.register_buffer('scale', scale, persistent=False)
        self.prepare(integers)

    def prepare(self, integers: Tensor) -> None:
        """Keep the weight's integers ``(O, I)`` in the form that :meth:`scaled` takes."""
        packed = torch.ops.onednn.qlinear_prepack(integers.contiguous(), None)
        self.register_buffer('packed', packed, persistent=False)
        zeros = torch.zeros(len(integers), dtype=torch.int64)
        self.register_buffer('zeros', zeros, persistent=False)

    def scaled(self, codes: Tensor) -> Tensor:
        """Product with the integers, times their scale."""
        return torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, self.zero_point, self.packed, self.scale, self.zeros,
            None, 1.0, 0, torch.float32, 'none', [], '',
        )  # fmt: skip

    def of_activations(self, codes: Tensor, others: Tensor) -> Tensor:
        """``codes @ others.T`` image by image, of codes alone.

        Args:
            codes (Tensor): uint8 ``(B, N, I)``, shifted by the zero point.
            others (Tensor): int8 ``(B, M, I)``.

        Returns:
            Tensor: int32 ``(B, N, M)``.
        """
        codes = (codes - self.zero_point).view(torch.int8)
        return torch.stack([torch._int_mm(a, b.T) for a, b in zip(codes, others)])

    def forward(self, codes: Tensor) -> Tensor:
        """uint8 ``(..., I)`` to float32 ``(..., O)``."""
        out = self.scaled(codes)
        if self.offset:
            sums = codes.sum(dim=-1, dtype=torch.int32) - self.zero_point * codes.shape[-1]
            out = torch.addcmul(out, sums[..., None].float(), self.scale, value=self.offset)
        return out


class IntegerLinear(nn.Module):
    """:class:`QuantLinear` in integers.

    Args:
        weight (IntegerWeight): ``(O, I)``.
        bias (Tensor, optional): ``(O,)``.
        input_quant (IntegerInput): Codes of the input.
    """

    def __init__(
        self, weight: IntegerWeight, bias: Tensor | None, input_quant: IntegerInput
    ) -> None:
        super().__init__()
        self.in_features = weight.codes.shape[1]
        self.out_features = weight.codes.shape[0]
        self.input_quant = input_quant
        self.product = IntegerProduct(weight, input_quant.zero_point)
        self.register_buffer('bias', folded_bias(weight, bias, input_quant), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., I)`` to ``(..., O)``."""
        return self.compute(self.input_quant(x))

    def compute(self, codes: Tensor) -> Tensor:
        """Result from the codes ``(..., I)`` of the input."""
        return torch.addcmul(self.bias, self.product(codes), self.input_quant.steps_per_token)


def folded_bias(weight: IntegerWeight, bias: Tensor | None, input_quant: IntegerInput) -> Tensor:
    """Bias that contains what the shift after the input's quantization becomes, ``(O,)``."""
    bias = torch.zeros(weight.codes.shape[0]) if bias is None else bias.detach().clone()
    shift = input_quant.after
    return bias if shift is None else bias + weight.dequantize() @ shift


class IntegerQKV(Attending, IntegerLinear):
    """:class:`QuantQKV` in integers; queries, keys and values leave it as floats."""

    def __init__(
        self,
        weight: IntegerWeight,
        bias: Tensor | None,
        input_quant: IntegerInput,
        module: QuantQKV,
    ) -> None:
        super().__init__(weight, bias, input_quant)
        self.num_heads = module.num_heads
        self.part_sizes = module.part_sizes
        quantizers = (module.query_quant, module.key_quant, module.value_quant)
        self.quantizers = nn.ModuleList(map(FixedLSQ, quantizers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`QuantQKV.forward`."""
        parts = super().forward(x).split(self.part_sizes, dim=-1)
        return tuple(
            quantize(part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for quantize, part in zip(self.quantizers, parts)
        )


class IntegerQKR(nn.Module):
    """:class:`QKRProjection` in integers; queries, keys and values leave it as floats."""

    def __init__(
        self,
        value: IntegerWeight,
        product: IntegerWeight,
        bias: Tensor | None,
        input_quant: IntegerInput,
        module: QKRProjection,
    ) -> None:
        super().__init__()
        self.num_heads = module.num_heads
        self.input_quant = input_quant
        self.value = IntegerLinear(value, bias, input_quant)
        self.key = IntegerLinear(product, None, input_quant)
        self.key_quant = FixedLSQ(module.key_quant)
        self.value_quant = FixedLSQ(module.value_quant)

    def _values(self, codes: Tensor) -> Tensor:
        value = self.value_quant(self.value.compute(codes))
        return value.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _keys(self, codes: Tensor) -> Tensor:
        return self.key.compute(codes).unflatten(-1, (self.num_heads, -1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`QKRProjection.forward`."""
        codes = self.input_quant(x)
        query = (codes.float() - self.input_quant.zero_point) * self.input_quant.steps
        query += self.input_quant.after
        return (
            query[:, None],
            self.key_quant(self._keys(codes)).transpose(1, 2),
            self._values(codes),
        )

    def logits_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Attending.logits_and_values`; logits are int8 products, too."""
        codes = self.input_quant(x)
        keys = self._keys(codes)
        # The shift after the keys adds the same to all logits of a query: softmax ignores it.
        keys = self.key_quant.codes(keys).flatten(1, 2)
        of_shift = (keys @ self.input_quant.after)[:, None]
        logits = self.key.product.of_activations(codes, keys.to(torch.int8))
        logits = torch.addcmul(of_shift, logits, self.input_quant.steps)
        logits = logits.unflatten(-1, (-1, self.num_heads)) * self.key_quant.steps.squeeze(-1)
        return logits.permute(0, 3, 1, 2), self._values(codes)


def _integer_module(
    module: nn.Module, weights: dict[str, IntegerWeight], bias: Tensor | None
) -> nn.Module:
    if isinstance(module, QuantConv2d):
        # Steps belong to image channels: computed in float32, which is 1 % of a ViT.
        module.weight = nn.Parameter(weights['weight'].dequantize())
        module.weight_quant = nn.Identity()
        return module
    input_quant = IntegerInput(module.input_quant)
    if isinstance(module, QKRProjection):
        return IntegerQKR(weights['value'], weights['product'], bias, input_quant, module)
    if isinstance(module, QuantQKV):
        return IntegerQKV(weights['weight'], bias, input_quant, module)
    return IntegerLinear(weights['weight'], bias, input_quant)


@torch.no_grad()
def load_integer(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, dict],
    quantizers: Mapping[str, dict],
) -> nn.Module:
    """Turn a quantized model into its integer form, in place, with the weights of a packed file.

    Args:
        model (nn.Module): Built by the config of the packed model.
        tensors (Mapping[str, Tensor]): See :func:`pack`.
        layers (Mapping[str, dict]): See :func:`pack`.
        quantizers (Mapping[str, dict]): See :func:`activation_quantizers`.

    Returns:
        nn.Module: ``model``, on the CPU and in evaluation mode. It can't be trained.

    Raises:
        CheckpointError: If the file is of another model, other bits or another granularity.
        ValueError: If the model's settings don't allow int8 products.
    """
    model.cpu()
    modules = dict(quantized_modules(model))
    _check_layers(model, modules, layers)
    _check_same(activation_quantizers(model), quantizers)
    low_bit = {
        f'{_join(name, part)}.{end}'
        for name, parts in layers.items()
        for part in parts
        for end in ('codes', 'scale')
    }
    state = {key: value for key, value in tensors.items() if key not in low_bit}
    for name, module in modules.items():
        if isinstance(module, QKRProjection) and module.bias is not None:
            key, unused = _join(name, 'bias'), sum(module.part_sizes[:2])
            state[key] = torch.cat((state[key].new_zeros(unused), state[key]))
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if not any(key == _join(n, 'weight') for n in modules)]
    if missing or unexpected:
        raise CheckpointError(
            f'The packed file does not fit {type(model).__name__}: missing {missing[:5]}, '
            f'unexpected {unexpected[:5]}'
        )
    for name, module in modules.items():
        weights = {
            part: unpack_weight(tensors, _join(name, part), entry)
            for part, entry in layers[name].items()
        }
        bias = module.value_bias() if isinstance(module, QKRProjection) else module.bias
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, _integer_module(module, weights, bias))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LSQQuantizer) and not isinstance(module, FixedLSQ):
                setattr(module, name, FixedLSQ(child))
    model.requires_grad_(False)
    # mmpretrain's backbones return nothing here
    model.eval()
    return model


def load_packed(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """:func:`load_integer` with the file that :func:`save_packed` wrote."""
    return load_integer(model, *read_packed(path))


def integer_copy(model: nn.Module) -> nn.Module:
    """The integer form of a quantized model, which stays as it is."""
    return load_integer(copy.deepcopy(model), *pack(model))


def _join(prefix: str, name: str) -> str:
    return f'{prefix}.{name}' if prefix else name


def _check_layers(model: nn.Module, modules: Mapping[str, nn.Module], layers: Mapping) -> None:
    if different := sorted(set(modules) ^ set(layers)):
        raise CheckpointError(
            f'The packed file does not fit {type(model).__name__}: {different[:5]} are quantized '
            'in one of them only. Is it a file of this config?'
        )
    for name, module in modules.items():
        expected = {
            part: dict(bits=quantizer.bits, shape=list(latent.shape))
            for part, (quantizer, latent) in latent_weights(module).items()
        }
        found = {
            part: dict(bits=entry['bits'], shape=entry['shape'])
            for part, entry in layers[name].items()
        }
        _check_same({name: expected}, {name: found})


def _check_same(expected: Mapping[str, dict], found: Mapping[str, dict]) -> None:
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f'The packed file has {found.get(name)} for {name}, the config {expected.get(name)}'
            )
