from collections.abc import Callable, Mapping

from torch import Tensor

from .cifar_resnet import convert_cifar_resnet, export_cifar_resnet
from .cls_kd import convert_cls_kd, export_cls_kd
from .nvit import convert_nvit, export_nvit
from .ofq import convert_ofq, export_ofq
from .smmix import (
    convert_cait,
    convert_pvt,
    convert_smmix,
    export_cait,
    export_pvt,
    export_smmix,
)
from .stvit import convert_stvit, export_stvit
from .timm import (
    convert_deit,
    convert_deit_distilled,
    convert_lv_vit,
    convert_t2t,
    convert_timm,
    convert_timm_hybrid,
    export_deit_distilled,
    export_lv_vit,
    export_t2t,
    export_timm,
    export_timm_hybrid,
)
from .transreid import convert_transreid, export_transreid

StateDict = Mapping[str, Tensor]
Converter = Callable[[StateDict], dict[str, Tensor]]

CONVERTERS: dict[str, Converter] = {
    'cait': convert_cait,
    'cifar_resnet': convert_cifar_resnet,
    'cls_kd': convert_cls_kd,
    'pvt': convert_pvt,
    'smmix': convert_smmix,
    'timm': convert_timm,
    'timm-hybrid': convert_timm_hybrid,
    'deit': convert_deit,
    'deit-distilled': convert_deit_distilled,
    'mctf': convert_timm,
    'nvit': convert_nvit,
    'ofq': convert_ofq,
    't2t': convert_t2t,
    'lv-vit': convert_lv_vit,
    'stvit': convert_stvit,
    'swin': convert_stvit,
    'transreid': convert_transreid,
}
EXPORTERS: dict[str, Converter] = {
    'cait': export_cait,
    'cifar_resnet': export_cifar_resnet,
    'cls_kd': export_cls_kd,
    'pvt': export_pvt,
    'smmix': export_smmix,
    'timm': export_timm,
    'timm-hybrid': export_timm_hybrid,
    'deit': export_timm,
    'deit-distilled': export_deit_distilled,
    'mctf': export_timm,
    'nvit': export_nvit,
    'ofq': export_ofq,
    't2t': export_t2t,
    'lv-vit': export_lv_vit,
    'stvit': export_stvit,
    'swin': export_stvit,
    'transreid': export_transreid,
}

#: Weights that models of a source may lack or have besides, as regular expressions.
OPTIONAL_WEIGHTS: dict[str, list[str]] = {
    'cls_kd': [r'^(backbone\.)?norm[0-2]\.'],  # of a Swin's inner stages, for USKD
}


def convert_state_dict(state_dict: StateDict, source: str) -> dict[str, Tensor]:
    """Rename the weights of another code base to vitdown's names.

    Args:
        state_dict (Mapping[str, Tensor]): Weights, without ``module.`` and outer dicts.
        source (str): A key of :data:`CONVERTERS`.

    Returns:
        dict[str, Tensor]: The same tensors under names such as ``backbone.layers.0.ln1.weight``.

    Raises:
        ValueError: For an unknown source, or weights that the source's models do not have.
    """
    return _lookup(CONVERTERS, source, 'source')(state_dict)


def export_state_dict(state_dict: StateDict, target: str) -> dict[str, Tensor]:
    """Rename vitdown's weights to those of another code base, the inverse of converting.

    Args:
        state_dict (Mapping[str, Tensor]): State dict of a vitdown model (``backbone.`` ...).
        target (str): A key of :data:`EXPORTERS`.

    Returns:
        dict[str, Tensor]: The same tensors under the target's names.

    Raises:
        ValueError: For an unknown target, or weights that it has no name for.
    """
    return _lookup(EXPORTERS, target, 'target')(state_dict)


def _lookup(table: dict[str, Converter], name: str, what: str) -> Converter:
    if name not in table:
        raise ValueError(f'Unknown {what} {name!r}; choose from {sorted(table)}')
    return table[name]
