"""STViT-R's third stage in the form of the released code: slow, for comparison only.

Key windows are cut from the raw tokens first, so norm and projections run once for each window
that a token is in; attention is spelled out; masks are floats of -1000, built on every call.
"""

import types

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.models.layers import SemanticLayout, SemanticTokenGenerator, SemanticTokenRecovery

HIDDEN = -1000.0


def use_unfolded_form(model: nn.Module) -> nn.Module:
    """Replace the forward functions of a model's generation and recovery layers, in place.

    Args:
        model (nn.Module): With window keys and ``pad_mask`` ``'official'`` or False; or with the
            keys of the released classifiers, for maps of 14x14.
    """
    for module in model.modules():
        if getattr(module, 'reach', None) is None:
            continue
        if isinstance(module, SemanticTokenRecovery):
            module.forward = types.MethodType(recover, module)
        elif isinstance(module, SemanticTokenGenerator):
            function = generate_released if module.with_own_keys else generate
            module.forward = types.MethodType(function, module)
    return model


def generate_released(
    layer: SemanticTokenGenerator,
    semantic: Tensor,
    image: Tensor,
    layout: SemanticLayout,
    center: None = None,
) -> Tensor:
    """What the released classifier's first generation layer computes from a 14x14 map."""
    queries = layout.split(semantic)
    keys = image.unflatten(1, (14, 14)).unfold(1, 10, 4).unfold(2, 10, 4)
    keys = keys.flatten(4).transpose(3, 4).flatten(0, 2)
    x = layer.attn.gamma1(
        layer.attn.proj(attend(layer, queries, torch.cat((queries, keys), dim=1), None))
    )
    x = layout.join(queries + layer.attn.out_drop(x) if layer.shortcut else x)
    return layer.ffn(layer.ln2(x), identity=x)


def generate(
    layer: SemanticTokenGenerator,
    semantic: Tensor,
    image: Tensor,
    layout: SemanticLayout,
    center: None = None,
) -> Tensor:
    """What :meth:`SemanticTokenGenerator.forward` computes."""
    bottom, right = layout.padding
    x = F.pad(image.unflatten(1, (layout.height, layout.width)), (0, 0, 0, right, 0, bottom))
    keys, mask = unfold(x, layout, layer.reach, layout.window)
    queries = layout.split(semantic)
    x = queries + layer.attn.project_out(attend(layer, queries, keys, mask))
    x = layout.join(x)
    return layer.ffn(layer.ln2(x), identity=x)


def recover(
    layer: SemanticTokenRecovery, image: Tensor, semantic: Tensor, layout: SemanticLayout
) -> Tensor:
    """What :meth:`SemanticTokenRecovery.forward` computes."""
    (rows, columns), side = layout.grid, layout.window
    bottom, right = layout.padding
    keys, mask = unfold(
        semantic.unflatten(1, layout.semantic_size), layout, layer.reach, layout.num_semantic
    )
    x = F.pad(image.unflatten(1, (layout.height, layout.width)), (0, 0, 0, right, 0, bottom))
    x = x.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
    queries = x.flatten(3, 4).flatten(0, 2)
    x = queries + layer.attn.project_out(attend(layer, queries, keys, mask))
    x = x.unflatten(1, (side, side)).unflatten(0, (-1, rows, columns)).transpose(2, 3)
    x = x.flatten(3, 4).flatten(1, 2)[:, : layout.height, : layout.width].flatten(1, 2)
    return layer.ffn(layer.ln2(x), identity=x)


def unfold(
    x: Tensor, layout: SemanticLayout, reach: int, step: int
) -> tuple[Tensor, Tensor | None]:
    """Windows of side ``reach`` of a map ``(B, H, W, C)``, and their mask."""
    before = (reach - step) // 2
    after = reach - step - before
    bottom, right = layout.padding
    mask = None
    if layout.pad_mask == 'official':
        # Single precision in mixed precision, too
        mask = torch.zeros(x.shape[1:3], device=x.device)
        mask[-bottom:, -right:] = HIDDEN
        mask = F.pad(mask, (before, after, before, after), value=HIDDEN)
        mask = mask.unfold(0, reach, step).unfold(1, reach, step).flatten(2).flatten(0, 1)
    x = F.pad(x, (0, 0, before, after, before, after))
    x = x.unfold(1, reach, step).unfold(2, reach, step).flatten(4).transpose(3, 4)
    return x.flatten(0, 2), mask


def attend(layer: nn.Module, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    query = layer.attn.project_q(layer.ln1(queries))
    key, value = layer.attn.project_kv(layer.ln1(keys))
    logits = query @ key.transpose(2, 3) * layer.attn.scale
    if mask is not None:
        logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None, None]).flatten(0, 1)
    return (torch.softmax(logits, dim=-1) @ value).transpose(1, 2).flatten(2)
