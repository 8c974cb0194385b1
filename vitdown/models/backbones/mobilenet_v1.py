from collections.abc import Sequence

from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from vitdown.registry import MODELS

# (output channels, stride) of the depthwise-separable blocks
_LOW = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5)
_HIGH = ((1024, 2), (1024, 1))


def _conv_bn_relu(
    in_channels: int, out_channels: int, *args: int, **kwargs: int
) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, *args, bias=False, **kwargs)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_conv_bn_relu(in_channels, in_channels, 3, stride, 1, groups=in_channels),
        *_conv_bn_relu(in_channels, out_channels, 1),
    )


def _blocks(in_channels: int, plan: tuple[tuple[int, int], ...]) -> list[nn.Sequential]:
    blocks = []
    for out_channels, stride in plan:
        blocks.append(_separable(in_channels, out_channels, stride))
        in_channels = out_channels
    return blocks


@MODELS.register_module()
class MobileNetV1(BaseModule):
    """MobileNet (arXiv 1704.04861), the first one.

    Args:
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Outputs: 0 for the 512 channels after the eleventh block, 1
            for the 1024 after the last. Defaults to both.
        init_cfg (dict | Sequence[dict], optional): Defaults to Kaiming initialisation of
            convolutions.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_indices: tuple[int, ...] = (0, 1),
        init_cfg: dict | Sequence[dict] | None = (
            dict(type='Kaiming', layer=['Conv2d']),
            dict(type='Constant', val=1, layer=['_BatchNorm']),
        ),
    ) -> None:
        super().__init__(list(init_cfg) if isinstance(init_cfg, tuple) else init_cfg)
        if not out_indices or not set(out_indices) <= {0, 1}:
            raise ValueError(f'out_indices must be some of 0 and 1, got {out_indices}')
        self.out_indices = tuple(out_indices)
        stem = nn.Sequential(*_conv_bn_relu(in_channels, 32, 3, 2, 1))
        self.model = Sequential(stem, *_blocks(32, _LOW))
        self.s4 = Sequential(*_blocks(512, _HIGH))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps ``(B, 512, H / 16, W / 16)`` and ``(B, 1024, H / 32, W / 32)``."""
        middle = self.model(x)
        outs = (middle, self.s4(middle))
        return tuple(outs[i] for i in self.out_indices)
