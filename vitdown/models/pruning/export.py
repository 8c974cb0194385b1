"""From a masked model to a small dense one: its config, its weights, and files of both."""

import copy
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.models.utils import LayerScale
from torch import Tensor, nn

from vitdown.files import write_atomically
from vitdown.registry import MODELS

from ..heads.glca_branch import GLCABranch
from .structures import Sizes, ViTStructure

# Part of a backbone's config, but a matter of how it is trained
_DROP_RATES = ('drop_rate', 'drop_path_rate', 'attn_drop_rate')


def dense_model_cfg(
    model_cfg: Mapping,
    model: nn.Module,
    structure: ViTStructure,
    gates: Sequence[Tensor],
    ln_mode: str = 'dense',
) -> dict:
    """Config of the dense model that a masked model becomes.

    Args:
        model_cfg (Mapping): Config of the masked model, with ``backbone`` and ``head``.
        model (nn.Module): The masked model.
        structure (ViTStructure): Its structure.
        gates (Sequence[Tensor]): Which units are kept, one bool tensor a layer.
        ln_mode (str): ``'dense'``: usual LayerNorm over the channels left, to be fine-tuned.
            ``'exact'``: LayerNorm with the statistics of the full width, which computes the same
            as the masked model.

    Raises:
        ValueError: For another ``ln_mode``, or one that :func:`check_ln_mode` refuses.
    """
    sizes = Sizes.from_counts(structure.counts(gates))
    check_ln_mode(ln_mode, model.backbone, sizes.emb < structure.sizes.emb)
    cfg = copy.deepcopy(dict(model_cfg))
    norm_dims = None
    if ln_mode == 'exact':
        narrower = structure.sizes.emb if sizes.emb < structure.sizes.emb else None
        norm_dims = cfg['backbone'].get('norm_dims') or narrower
    cfg['backbone'] = _backbone_cfg(cfg['backbone'], model.backbone, sizes, structure, norm_dims)
    cfg['init_cfg'] = None
    head = cfg.get('head')
    if head is not None:
        head['in_channels'] = sizes.emb
        glca = getattr(model.head, 'glca', None)
        if isinstance(glca, GLCABranch):
            head.update(_glca_cfg(head, glca, norm_dims))
    return cfg


def check_ln_mode(ln_mode: str, backbone: nn.Module, embedding: bool) -> None:
    """Check that dense models can have their norms like that.

    Args:
        ln_mode (str): See :func:`dense_model_cfg`.
        backbone (nn.Module): The masked model's.
        embedding (bool): Whether the embedding is pruned.

    Raises:
        ValueError: For another ``ln_mode``, or an exact one with a norm in the patch embedding.
    """
    if ln_mode not in ('dense', 'exact'):
        raise ValueError(f"ln_mode must be 'dense' or 'exact', got {ln_mode!r}")
    if ln_mode == 'exact' and embedding and getattr(backbone.patch_embed, 'norm', None) is not None:
        raise ValueError(
            "ln_mode='exact' does not reach the norm of the patch embedding (patch_cfg.norm_cfg); "
            "use ln_mode='dense' and fine-tune, or do not prune the embedding (structures)"
        )


def _backbone_cfg(
    cfg: dict, backbone: nn.Module, sizes: Sizes, structure: ViTStructure, norm_dims: int | None
) -> dict:
    arch = sizes.arch(structure.qk_scale)
    arch['qkv_bias'] = backbone.layers[0].attn.qkv.bias is not None
    replaced = ('type', 'arch', 'qk_scale', 'qkv_bias', 'ln_mode', 'norm_dims', 'init_cfg')
    kept = {key: value for key, value in cfg.items() if key not in replaced}
    if len(backbone.extra_tokens()) > 1:
        kept['with_dist_token'] = True
    exact = {} if norm_dims is None else dict(ln_mode='exact', norm_dims=norm_dims)
    return dict(type='vitdown.NViT', arch=arch, **kept, **exact)


def _glca_cfg(head: dict, glca: GLCABranch, norm_dims: int | None) -> dict:
    """The GLCA block keeps its heads and hidden channels; only its tokens are narrower."""
    attn = glca.block.attn
    branch = dict(head.get('glca') or {})
    branch['init'] = 'random'
    branch['layer_cfg'] = {
        **(branch.get('layer_cfg') or {}),
        'qk_dims': attn.qk_dims,
        'v_dims': attn.v_dims,
        'qk_scale': attn.scale,
    }
    if isinstance(attn.gamma1, LayerScale):
        branch['layer_cfg']['layer_scale_init_value'] = 1e-5  # replaced by the weights
    if norm_dims is not None and branch.get('norm_cfg'):
        norm = {**branch['norm_cfg'], 'norm_dims': norm_dims}
        branch['norm_cfg'] = {**norm, 'type': 'vitdown.PrunedLayerNorm'}
    return dict(
        num_heads=attn.num_heads,
        feedforward_channels=glca.block.ffn.feedforward_channels,
        glca=branch,
    )


def export_dense(
    model_cfg: Mapping,
    model: nn.Module,
    structure: ViTStructure,
    gates: Sequence[Tensor],
    ln_mode: str = 'dense',
) -> tuple[dict, nn.Module]:
    """Config of the dense model and the model, with its weights.

    Arguments are those of :func:`dense_model_cfg`. The weights must fit exactly.
    """
    cfg = dense_model_cfg(model_cfg, model, structure, gates, ln_mode)
    dense = MODELS.build(cfg)
    dense.load_state_dict(structure.select(model.state_dict(), gates))
    return cfg, dense.train(model.training)


def save_dense(
    cfg: Config,
    model: nn.Module,
    structure: ViTStructure,
    gates: Sequence[Tensor],
    path: str | os.PathLike,
    ln_mode: str = 'dense',
    meta: Mapping | None = None,
    recipe: Config | None = None,
) -> Path:
    """Write the dense model: a checkpoint, and beside it a config that tests and fine-tunes it.

    The config is that of the masked model with what is left of its sizes and without pruning, and
    starts from the checkpoint (``load_from``).

    Args:
        cfg (Config): Config that the masked model was trained with.
        model (nn.Module): The masked model.
        structure (ViTStructure): Its structure.
        gates (Sequence[Tensor]): Which units are kept, one bool tensor a layer.
        path (str): Checkpoint to write, ``.pth``; the config gets the suffix ``.py``.
        ln_mode (str): See :func:`dense_model_cfg`.
        meta (Mapping, optional): What to keep in the checkpoint's ``meta``.
        recipe (Config, optional): Config to be fine-tuned with, that everything but the model is
            taken from, and the backbone's drop rates. Defaults to ``cfg``.

    Returns:
        Path: The config.
    """
    path = Path(path)
    model_cfg, dense = export_dense(cfg.model, model, structure, gates, ln_mode)
    recipe = cfg if recipe is None else recipe
    model_cfg['backbone'] = _with_drop_rates(model_cfg['backbone'], recipe.model.backbone)
    out = Config(copy.deepcopy(recipe.to_dict()))
    out.model = model_cfg
    hooks = out.get('custom_hooks') or []
    out.custom_hooks = [hook for hook in hooks if not is_pruning_hook(hook)]
    out.load_from, out.resume = str(path.resolve()), False
    for key in ('work_dir', 'launcher'):
        out.pop(key, None)
    meta = {**(meta or {}), 'arch': dict(model_cfg['backbone']['arch'])}
    buffer = io.BytesIO()
    weights = {name: tensor.cpu() for name, tensor in dense.state_dict().items()}
    torch.save(dict(state_dict=weights, meta=meta), buffer)
    write_atomically(buffer.getvalue(), path)
    config = path.with_suffix('.py')
    write_atomically(out.pretty_text.encode(), config)
    return config


def _with_drop_rates(backbone: Mapping, recipe: Mapping) -> dict:
    kept = {key: value for key, value in backbone.items() if key not in _DROP_RATES}
    return {**kept, **{key: recipe[key] for key in _DROP_RATES if key in recipe}}


def is_pruning_hook(hook: object) -> bool:
    """Whether a hook, or the config of one, prunes."""
    kind = hook.get('type') if isinstance(hook, Mapping) else type(hook).__name__
    return str(kind).rpartition('.')[2] == 'PruningHook'
