from collections.abc import Mapping

from torch import Tensor

from .renaming import NamePair, rename

_PAIRS: list[NamePair] = [
    *((f'{part}.{{p}}', f'backbone.{part}.{{p}}') for part in ('conv1', 'bn1')),
    *(
        (f'layer{stage}.{{i}}.{part}.{{p}}', f'backbone.layer{stage}.{{i}}.{part}.{{p}}')
        for stage in (1, 2, 3)
        for part in ('conv1', 'bn1', 'conv2', 'bn2')
    ),
    ('linear.{p}', 'head.fc.{p}'),
]


def convert_cifar_resnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ResNet-20 to ResNet-110 of akamaster/pytorch_resnet_cifar10 to ``CIFARResNet``.

    In float32: files in half precision are accepted too.
    """
    return rename({k: v.float() for k, v in state_dict.items()}, _PAIRS, 'cifar_resnet')


def export_cifar_resnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back from :func:`convert_cifar_resnet`."""
    kept = {k: v for k, v in state_dict.items() if not k.endswith('num_batches_tracked')}
    return rename(kept, _PAIRS, 'cifar_resnet', reverse=True)
