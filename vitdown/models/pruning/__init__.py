from .consumers import embed_axes
from .cost import MultiplyAdds, NormalizedCost, Parameters, total_cost, unit_savings
from .export import check_ln_mode, dense_model_cfg, export_dense, save_dense
from .global_pruner import GlobalPruner
from .latency import LatencyTable
from .measure import device_name, grid_axes, measure_latency
from .ranking import group_units, prune_groups, rank_index, regularise, update_average
from .saliency import magnitude_scores, random_scores, taylor_gate_scores, unit_sums
from .semi_structured import mask_2_to_4, to_semi_structured
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
    'check_ln_mode',
    'dense_model_cfg',
    'device_name',
    'embed_axes',
    'export_dense',
    'grid_axes',
    'group_units',
    'magnitude_scores',
    'mask_2_to_4',
    'measure_latency',
    'prune_groups',
    'random_scores',
    'rank_index',
    'regularise',
    'save_dense',
    'taylor_gate_scores',
    'to_semi_structured',
    'total_cost',
    'unit_savings',
    'unit_sums',
    'update_average',
    'vit_layers',
]
