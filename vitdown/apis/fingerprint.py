"""A short name for a model that changes whenever its features would."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from mmengine.config import Config
from torch import nn


def fingerprint(model: nn.Module, cfg: Config, pipeline: list[dict]) -> str:
    """Digest of what decides on the features: model config, weights and test pipeline.

    Args:
        model (nn.Module): The model with its weights.
        cfg (Config): Its config; how weights were initialised (``init_cfg``) plays no part.
        pipeline (list[dict]): Config of the transforms.

    Returns:
        str: 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    recipe = [_without_init_cfg(cfg.model), list(pipeline)]
    digest.update(json.dumps(recipe, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        # Bytes, since NumPy lacks some of torch's types.
        value = value.detach().cpu().contiguous().flatten()
        digest.update(value.view(torch.uint8).numpy() if value.numel() else b'')
    return digest.hexdigest()[:16]


def _without_init_cfg(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _without_init_cfg(v) for k, v in node.items() if k != 'init_cfg'}
    if isinstance(node, (list, tuple)):
        return [_without_init_cfg(value) for value in node]
    return node
