from typing import Any

import torch
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..quantization import quantizable
from .vision_transformer import VisionTransformer


@MODELS.register_module()
@quantizable
class DistilledVisionTransformer(VisionTransformer):
    """DeiT with a distillation token beside the class token (arXiv 2012.12877, Sec. 5).

    With ``out_type='cls_token'`` each output is the pair of both tokens, which
    ``mmpretrain.DeiTClsHead`` takes. Token fusion never touches either. Arguments are those of
    :class:`VisionTransformer`.
    """

    num_extra_tokens = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, with_cls_token=True, **kwargs)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))

    def init_weights(self) -> None:
        super().init_weights()
        if not self.init_cfg:
            trunc_normal_(self.dist_token, std=0.02)

    def extra_tokens(self) -> list[nn.Parameter]:
        return [self.cls_token, self.dist_token]

    def _format_output(self, x: Tensor, hw: tuple[int, int]) -> Tensor | tuple[Tensor, Tensor]:
        if self.out_type == 'cls_token':
            return x[:, 0], x[:, 1]
        return super()._format_output(x, hw)
