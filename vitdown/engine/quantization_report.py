"""What low bits make of a model's cost: bits, weights, multiply-adds and bit operations a layer."""

from dataclasses import asdict, dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from vitdown.models.quantization.packed import latent_weights, quantized_modules

from .complexity import Complexity

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """Matrix products of one module, without those of the modules in it.

    Attributes:
        name (str): Name of the module in the model.
        w_bits (int): Bits of its weights; of an attention, those of its activations.
        a_bits (int): Bits of its activations. 32 is full precision.
        weights (int): Weights that a packed file stores: with query-key reparametrisation those
            of the products.
        macs (int): Multiply-adds.
        bitops (int): Bit operations: multiply-adds times the bits of both operands.
        size (float): Bytes of the weights, without scales and biases.
    """

    name: str
    w_bits: int
    a_bits: int
    weights: int
    macs: int
    bitops: int
    size: float


@dataclass(frozen=True)
class QuantizationReport:
    """Cost of one forward pass by layers.

    Attributes:
        layers (list[LayerCost]): Those with matrix products, in the order of definition.
        params (int): Parameters of the model as it is trained.
    """

    layers: list[LayerCost]
    params: int

    @property
    def total(self) -> dict[str, float]:
        """Sums over the layers of ``weights``, ``macs``, ``bitops`` and ``size``."""
        keys = ('weights', 'macs', 'bitops', 'size')
        return {key: sum(getattr(layer, key) for layer in self.layers) for key in keys}

    def as_dict(self) -> dict:
        """Everything, as JSON has it."""
        layers = [asdict(layer) for layer in self.layers]
        return dict(layers=layers, total=self.total, params=self.params)

    def as_table(self) -> str:
        """One line a layer, and the total."""
        rows = [asdict(layer) for layer in self.layers]
        rows.append(dict(self.total, name='total', w_bits='', a_bits=''))
        lines = ['  W   A      weights       MiB     10^6 MACs   10^9 BitOPs  layer']
        lines += [
            f'{row["w_bits"]:>3} {row["a_bits"]:>3} {row["weights"]:12,} '
            f'{row["size"] / 2**20:9.3f} {row["macs"] / 1e6:13.3f} {row["bitops"] / 1e9:13.3f}  '
            f'{row["name"]}'
            for row in rows
        ]
        return '\n'.join(lines)


def quantization_report(model: nn.Module, cost: Complexity) -> QuantizationReport:
    """What a model costs with the bits that it has.

    Args:
        model (nn.Module): The model, quantized or not.
        cost (Complexity): Its :func:`get_flops`.
    """
    quantized = dict(quantized_modules(model))
    layers = []
    for name, module in model.named_modules():
        if name not in cost.by_layer:
            continue
        w_bits, a_bits = _bits(module)
        weights = 0
        if name in quantized:
            weights = sum(latent.numel() for _, latent in latent_weights(module).values())
        elif isinstance(module, (nn.Linear, _ConvNd)):
            weights = module.weight.numel()
        macs = cost.by_layer[name]
        bitops, size = macs * w_bits * a_bits, weights * w_bits / 8
        name = name or type(model).__name__
        layers.append(LayerCost(name, w_bits, a_bits, weights, macs, bitops, size))
    return QuantizationReport(layers, cost.params)


def _bits(module: nn.Module) -> tuple[int, int]:
    """Bits of both operands of a module's matrix products."""
    if hasattr(module, 'prob_quant'):
        quantizers = [module.prob_quant] * 2
    else:
        quantizers = [getattr(module, f'{name}_quant', None) for name in ('weight', 'input')]
    weight, activation = (getattr(q, 'bits', FLOAT_BITS) for q in quantizers)
    return weight, activation
