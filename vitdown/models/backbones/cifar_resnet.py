import torch.nn.functional as F
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from vitdown.registry import MODELS


class _Block(BaseModule):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


@MODELS.register_module()
class CIFARResNet(BaseModule):
    """ResNet for images of 32 pixels (He et al., arXiv 1512.03385, Sec. 4.2): three slim stages.

    Shortcuts between stages take every second pixel and add channels of zeros.

    Args:
        depth (int): 8, 14, 20, 32, 44, 56, 110: six layers more for one block more a stage.
        base_channels (int): Channels of the first stage, an even number. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        init_cfg (dict | list, optional): Defaults to Kaiming initialisation of convolutions.
    """

    def __init__(
        self,
        depth: int = 20,
        base_channels: int = 16,
        in_channels: int = 3,
        init_cfg: dict | list | None = dict(type='Kaiming', layer='Conv2d'),
    ) -> None:
        super().__init__(init_cfg)
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f'depth must be 8, 14, 20 ... (6 n + 2), got {depth}')
        if base_channels % 2:
            raise ValueError(f'base_channels must be even, got {base_channels}')
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        channels = base_channels
        for stage in range(3):
            width = base_channels * 2**stage
            blocks = []
            for i in range((depth - 2) // 6):
                stride = 2 if stage and not i else 1
                blocks.append(_Block(channels, width, stride))
                channels = width
            self.add_module(f'layer{stage + 1}', Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Feature map ``(B, 4 * base_channels, H / 4, W / 4)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        return (self.layer3(self.layer2(self.layer1(x))),)
