"""SMMix: images mixed where the model itself says, as pure functions, and what asks the model."""

from .probe import AttentionProbe, PatchRecorder, received_attention
from .schedule import Mix, draw_mix, region_sizes
from .smmix import (
    Regions,
    flip_partner,
    masked_token_means,
    mix_images,
    paste_regions,
    pick_regions,
    region_mask,
    region_scores,
    smmix_losses,
    smooth_onehot,
    soft_cross_entropy,
    token_geometry,
)

__all__ = [
    'AttentionProbe',
    'Mix',
    'PatchRecorder',
    'Regions',
    'draw_mix',
    'flip_partner',
    'masked_token_means',
    'mix_images',
    'paste_regions',
    'pick_regions',
    'received_attention',
    'region_mask',
    'region_scores',
    'region_sizes',
    'smmix_losses',
    'smooth_onehot',
    'soft_cross_entropy',
    'token_geometry',
]
