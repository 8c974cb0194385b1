from .attention import MultiheadAttention
from .encoder_layer import TransformerEncoderLayer
from .glca import GLCABlock
from .pairwise import pair_indices, pairwise_cross_attention, two_stream_attention
from .position_embedding import infer_grid, resize_pos_embed
from .pruned import PrunedLayerNorm, TokenScaledLinear
from .rollout import attention_rollout, attention_rollout_cls, select_top_r
from .side_information import SideInformationEmbedding

__all__ = [
    'GLCABlock',
    'MultiheadAttention',
    'PrunedLayerNorm',
    'SideInformationEmbedding',
    'TokenScaledLinear',
    'TransformerEncoderLayer',
    'attention_rollout',
    'attention_rollout_cls',
    'infer_grid',
    'pair_indices',
    'pairwise_cross_attention',
    'resize_pos_embed',
    'select_top_r',
    'two_stream_attention',
]
