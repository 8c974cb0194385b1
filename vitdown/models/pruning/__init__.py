from .consumers import embed_axes
from .cost import MultiplyAdds, NormalizedCost, Parameters, total_cost, unit_savings
from .global_pruner import GlobalPruner
from .latency import LatencyTable
from .ranking import group_units, prune_groups, rank_index, regularise, update_average
from .saliency import magnitude_scores, random_scores, taylor_gate_scores, unit_sums
from .structures import KINDS, Layer, Sizes, ViTStructure, vit_layers

__all__ = [
    'KINDS',
    'GlobalPruner',
    'LatencyTable',
    'Layer',
    'MultiplyAdds',
    'NormalizedCost',
    'Parameters',
    'Sizes',
    'ViTStructure',
    'embed_axes',
    'group_units',
    'magnitude_scores',
    'prune_groups',
    'random_scores',
    'rank_index',
    'regularise',
    'taylor_gate_scores',
    'total_cost',
    'unit_savings',
    'unit_sums',
    'update_average',
    'vit_layers',
]
