"""Quantized models in files of the size that their bits promise."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vitdown.checkpoint import CheckpointError
from vitdown.files import write_atomically

from .modules import QKRProjection, QuantConv2d, QuantLinear
from .packing import pack_codes, unpack_codes
from .quantizers import LSQQuantizer, quantizers_of

FORMAT = 'vitdown-ofq-2'
QUANTIZED = (QuantLinear, QuantConv2d, QKRProjection)


@dataclass(frozen=True)
class IntegerWeight:
    """A quantized weight as integers: ``scale * (codes + offset)`` row by row.

    Attributes:
        codes (Tensor): int8 ``(O, ...)``.
        scale (Tensor): float32 ``(O,)``.
        offset (float): 0.5 for StatsQ, whose grid has no zero, and 0 for LSQ.
        bits (int): Bits of a code.
    """

    codes: Tensor
    scale: Tensor
    offset: float
    bits: int

    def dequantize(self) -> Tensor:
        """The weight in float32."""
        scale = self.scale.view(-1, *[1] * (self.codes.ndim - 1))
        return (self.codes.float() + self.offset) * scale

    def for_compute(self) -> tuple[Tensor, Tensor, float]:
        """Integers, row scale and offset for int8 matrix products.

        Codes of up to 7 bits with a half-integer offset become odd integers without one:
        ``scale / 2 * (2 * codes + 1)``.
        """
        if self.offset == 0.5 and self.bits <= 7:
            return 2 * self.codes + 1, self.scale / 2, 0.0
        return self.codes, self.scale, self.offset


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers of a model whose weights have few bits, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QUANTIZED) and not isinstance(module.weight_quant, nn.Identity):
            yield name, module


@torch.no_grad()
def latent_weights(module: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Quantizers and latent weights: ``'weight'``, or ``'value'`` and ``'product'`` under QKR."""
    if isinstance(module, QKRProjection):
        return {
            'value': (module.weight_quant, module.value_weight()),
            'product': (module.product_quant, module.product()),
        }
    return {'weight': (module.weight_quant, module.weight)}


@torch.no_grad()
def integer_weights(module: nn.Module) -> dict[str, IntegerWeight]:
    """Weights of a quantized layer, by the names of :func:`latent_weights`."""
    weights = {}
    for name, (quantizer, latent) in latent_weights(module).items():
        codes, scale, offset = quantizer.integers(latent)
        weights[name] = IntegerWeight(codes, scale, offset, quantizer.bits)
    return weights


def activation_quantizers(model: nn.Module) -> dict[str, dict]:
    """What the quantizers of a model's activations are: bits, layout and number of their steps."""
    return {
        name: dict(bits=module.bits, step_view=list(module.step_view), steps=module.step.numel())
        for name, module in model.named_modules()
        if isinstance(module, LSQQuantizer) and not name.endswith(('weight_quant', 'product_quant'))
    }


def check_input(quantizer: nn.Module, name: str = 'this layer') -> None:
    """Whether int8 products can be computed of what a quantizer returns.

    Raises:
        ValueError: If it quantizes nothing, or has one step a channel, which can't be taken out of
            the product.
    """
    if not isinstance(quantizer, LSQQuantizer):
        raise ValueError(
            f'int8 products need quantized activations: set quant_cfg.a_bits for {name}, or leave '
            'it in full precision (quant_cfg.skip)'
        )
    if quantizer.step_view == (-1,) and quantizer.step.numel() > 1:
        raise ValueError(
            f"Steps per channel can't be taken out of the int8 product of {name}; use "
            "act_granularity='token' or 'tensor'"
        )


def pack(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, dict], dict[str, dict]]:
    """Tensors of a packed file, and what they are.

    Low-bit codes are packed along the input axis, as unsigned numbers from the lowest code on.
    Latent weights, weights and biases that QKR has no use for, and steps of weights are left out;
    everything else is kept in full precision.

    Args:
        model (nn.Module): Quantized model, with all steps set.

    Returns:
        tuple: Tensors by name, ``{layer: {weight: dict(bits, shape, offset)}}``, and
        :func:`activation_quantizers`.

    Raises:
        ValueError: If the model is not quantized, its steps are not set, or :mod:`.runtime` could
            not compute with them.
    """
    if any(not quantizer.is_initialized for quantizer in quantizers_of(model)):
        raise ValueError(
            'The steps of the quantizers are not set yet; load a trained checkpoint or run a batch'
        )
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    layers: dict[str, dict[str, dict]] = {}
    for name, module in quantized_modules(model):
        if not isinstance(module, QuantConv2d):
            check_input(module.input_quant, name or type(model).__name__)
        prefix = f'{name}.' if name else ''
        of_weights = (f'{prefix}weight_quant.', f'{prefix}product_quant.')
        tensors = {k: v for k, v in tensors.items() if not k.startswith(of_weights)}
        del tensors[f'{prefix}weight']
        if isinstance(module, QKRProjection) and (bias := module.value_bias()) is not None:
            tensors[f'{prefix}bias'] = bias.detach().cpu()
        layers[name] = {}
        for part, weight in integer_weights(module).items():
            codes = weight.codes.flatten(1).cpu().int() + 2 ** (weight.bits - 1)
            tensors[f'{prefix}{part}.codes'] = pack_codes(codes, weight.bits)
            tensors[f'{prefix}{part}.scale'] = weight.scale.float().cpu()
            layers[name][part] = dict(
                bits=weight.bits, shape=list(weight.codes.shape), offset=weight.offset
            )
    if not layers:
        raise ValueError(f'{type(model).__name__} has no quantized weights to pack')
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    return tensors, layers, activation_quantizers(model)


def unpack_weight(tensors: Mapping[str, Tensor], name: str, entry: Mapping) -> IntegerWeight:
    """A weight of a packed file, by its full name and its entry in the table of layers."""
    shape, bits = entry['shape'], entry['bits']
    length = int(torch.tensor(shape[1:]).prod())
    codes = unpack_codes(tensors[f'{name}.codes'], bits, length).int() - 2 ** (bits - 1)
    codes = codes.to(torch.int8).reshape(shape)
    return IntegerWeight(codes, tensors[f'{name}.scale'], entry['offset'], bits)


def save_packed(model: nn.Module, path: str | os.PathLike) -> int:
    """Write a quantized model to a packed file (safetensors).

    Returns:
        int: Its size in bytes.
    """
    tensors, layers, quantizers = pack(model)
    tables = {'layers': json.dumps(layers), 'quantizers': json.dumps(quantizers)}
    content = save(tensors, {'format': FORMAT, **tables})
    write_atomically(content, path)
    print_log(f'{len(content)} bytes written to {path}', logger='current')
    return len(content)


def read_packed(
    path: str | os.PathLike,
) -> tuple[dict[str, Tensor], dict[str, dict], dict[str, dict]]:
    """Read what :func:`save_packed` wrote; see :func:`pack`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is damaged or of another kind.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'Packed model {path} does not exist')
    try:
        with safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f'Packed model {path} is damaged or no safetensors file ({error})'
        ) from None
    if metadata.get('format') != FORMAT:
        raise CheckpointError(
            f'{path} is not a packed model of this version; write one with '
            'tools/deployment/export_quantized.py'
        )
    return tensors, json.loads(metadata['layers']), json.loads(metadata['quantizers'])
