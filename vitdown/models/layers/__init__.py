from .attention import MultiheadAttention
from .encoder_layer import TransformerEncoderLayer
from .position_embedding import infer_grid, resize_pos_embed
from .side_information import SideInformationEmbedding

__all__ = [
    'MultiheadAttention',
    'SideInformationEmbedding',
    'TransformerEncoderLayer',
    'infer_grid',
    'resize_pos_embed',
]
