from .attention import MultiheadAttention
from .cross_encoder_layer import CrossEncoderLayer
from .encoder_layer import TransformerEncoderLayer
from .glca import GLCABlock
from .pairwise import pair_indices, pairwise_cross_attention, two_stream_attention
from .position_embedding import infer_grid, resize_pos_embed
from .pruned import PrunedLayerNorm, TokenScaledLinear
from .rollout import attention_rollout, attention_rollout_cls, select_top_r
from .semantic_layout import SemanticLayout
from .semantic_pooling import RegionPooling
from .semantic_tokens import (
    SemanticEncoderLayer,
    SemanticTokenGenerator,
    SemanticTokenRecovery,
)
from .side_information import SideInformationEmbedding
from .take_tokens import take_tokens
from .window_attention import FusedWindowMSA, RelativePositionBias

__all__ = [
    'CrossEncoderLayer',
    'FusedWindowMSA',
    'GLCABlock',
    'MultiheadAttention',
    'PrunedLayerNorm',
    'RegionPooling',
    'RelativePositionBias',
    'SemanticEncoderLayer',
    'SemanticLayout',
    'SemanticTokenGenerator',
    'SemanticTokenRecovery',
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
    'take_tokens',
    'two_stream_attention',
]
