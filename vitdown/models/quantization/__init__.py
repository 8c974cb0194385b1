from .annealing import ConfidenceGuidedAnnealing
from .attention import QuantMultiheadAttention, QuantWindowMSA
from .convert import convert, quantizable
from .functional import cga_free_mask, lsq, lsq_codes, statsq, statsq_codes
from .modules import QKRProjection, QuantConv2d, QuantLinear, QuantQKV
from .oscillation import OscillationMonitor, OscillationTracker
from .packed import read_packed, save_packed
from .packing import pack_codes, unpack_codes
from .quantizers import LSQQuantizer, StatsQuantizer, quantizers_of, size_quantizers
from .runtime import integer_copy, load_integer, load_packed
from .settings import OFQ

__all__ = [
    'OFQ',
    'ConfidenceGuidedAnnealing',
    'LSQQuantizer',
    'OscillationMonitor',
    'OscillationTracker',
    'QKRProjection',
    'QuantConv2d',
    'QuantLinear',
    'QuantMultiheadAttention',
    'QuantQKV',
    'QuantWindowMSA',
    'StatsQuantizer',
    'cga_free_mask',
    'convert',
    'integer_copy',
    'load_integer',
    'load_packed',
    'lsq',
    'lsq_codes',
    'pack_codes',
    'quantizable',
    'quantizers_of',
    'read_packed',
    'save_packed',
    'size_quantizers',
    'statsq',
    'statsq_codes',
    'unpack_codes',
]
