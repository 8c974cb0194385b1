import copy
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from vitdown.models.layers import take_tokens
from vitdown.registry import MODELS

from ..quantization import quantizers_of
from .bnneck_head import BNNeck, ReIDHead


def jigsaw_order(num_patches: int, shift: int = 5, groups: int = 2) -> list[int]:
    """Order of the patches after TransReID's shift and shuffle (arXiv 2102.04378, Sec. 3.2).

    The patches are rotated left by ``shift - 1``, cut into ``groups`` runs and dealt out one from
    each run in turn. If ``groups`` does not divide their number, the second-to-last of the rotated
    patches is repeated at the end, as in the official code.

    Args:
        num_patches (int): Number of patches, at least ``max(shift, 2)``.
        shift (int): Official ``shift_num``. Defaults to 5.
        groups (int): Number of runs. Defaults to 2.

    Returns:
        list[int]: Patch indices from 0 in their new order.

    Raises:
        ValueError: If the patches are too few or do not divide even after the repetition.
    """
    if num_patches < max(shift, 2):
        raise ValueError(f'JPM with shift={shift} needs at least {max(shift, 2)} patches')
    order = [(i + shift - 1) % num_patches for i in range(num_patches)]
    if num_patches % groups:
        order.append(order[-2])
    if len(order) % groups:
        raise ValueError(f'{num_patches} patches cannot be shuffled in {groups} groups')
    return torch.tensor(order).view(groups, -1).T.flatten().tolist()


@MODELS.register_module()
class JPMHead(ReIDHead):
    """Jigsaw patch module: a global feature and several from shuffled groups of patches.

    TransReID (arXiv 2102.04378, Sec. 3.2). The global branch is the backbone's own last layer and
    norm; the local branch is a second last layer and norm, a copy of the backbone's when training
    starts, that runs over the class token and each group of shuffled patches. Every feature has a
    BNNeck of its own. Both come with :meth:`attach`, which ``ReIdentifier`` calls. The loss is
    half the global one and half the mean of the local ones; the
    test feature concatenates the global one and the local ones divided by their number.

    Args:
        num_classes (int): Number of training identities.
        in_channels (int): Width D of the tokens.
        num_groups (int): Number of local features. Defaults to 4.
        shift (int): See :func:`jigsaw_order`. Defaults to 5.
        shuffle_groups (int): See :func:`jigsaw_order`. Defaults to 2.
        rearrange (bool): Whether to shuffle at all. Defaults to True.
        **kwargs: Other arguments of :class:`ReIDHead`.
    """

    needs_tokens = True

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_groups: int = 4,
        shift: int = 5,
        shuffle_groups: int = 2,
        rearrange: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.num_groups = num_groups
        self.shift = shift
        self.shuffle_groups = shuffle_groups
        self.rearrange = rearrange
        self.bnnecks = ModuleList(self._build_bnneck() for _ in range(1 + num_groups))

    def attach(self, backbone: BaseModule) -> None:
        """Make the local branch: copies of the backbone's last layer and final norm.

        Raises:
            ValueError: If the backbone has no class token or no final norm, or a distillation
                token, or its quantizers have a step a token.
        """
        super().attach(backbone)
        if not backbone.final_norm:
            raise ValueError('JPMHead needs a backbone with final norm')
        if any(quantizer.per_token for quantizer in quantizers_of(backbone.layers[-1])):
            raise ValueError(
                "JPMHead runs the last layer on groups of patches, which quant_cfg's steps per "
                "token don't fit; set quant_cfg.act_granularity='tensor'"
            )
        self.local_layer = copy.deepcopy(backbone.layers[-1])
        self.local_norm = copy.deepcopy(backbone.ln1)

    def init_from_backbone(self, backbone: BaseModule) -> None:
        """Copy the weights of the backbone's last layer and final norm."""
        self.local_layer.load_state_dict(backbone.layers[-1].state_dict())
        self.local_norm.load_state_dict(backbone.ln1.state_dict())

    def features(self, feats: Any) -> list[Tensor]:
        """Global feature and local ones, ``(B, D)`` each, from ``TokenFeatures``."""
        tokens = feats.last_layer_input
        if feats.last_layer_source is not None:
            # The jigsaw is one of places: every patch gets the token that it was fused into.
            tokens = take_tokens(tokens, feats.last_layer_source)
        cls_token, patches = tokens[:, :1], tokens[:, 1:]
        num_patches = patches.shape[1]
        run = num_patches // self.num_groups
        if self.rearrange:
            order = jigsaw_order(num_patches, self.shift, self.shuffle_groups)
            patches = patches[:, torch.tensor(order, device=patches.device)]
        # All groups in one pass: (B, groups * run, D) -> (B * groups, run, D)
        patches = patches[:, : run * self.num_groups].unflatten(1, (self.num_groups, run))
        cls_token = cls_token[:, None].expand(-1, self.num_groups, -1, -1)
        groups = torch.cat((cls_token, patches), dim=2).flatten(0, 1)
        local, _ = self.local_layer(groups)
        local = self.local_norm(local[:, 0]).unflatten(0, (-1, self.num_groups))
        return [feats.normed_tokens[:, 0], *local.unbind(dim=1)]

    def _main_branch(self, feats: Any) -> tuple[Tensor, BNNeck]:
        return feats.normed_tokens[:, 0], self.bnnecks[0]

    def loss(self, feats: Any, labels: Tensor) -> dict[str, Tensor]:
        """Losses from ``TokenFeatures`` with identity labels ``(B,)``."""
        branches = [
            self._feature_losses(feature, bnneck, labels)
            for feature, bnneck in zip(self.features(feats), self.bnnecks)
        ]
        losses = {}
        for name, value in branches[0].items():
            if name.startswith('loss'):
                local = torch.stack([branch[name] for branch in branches[1:]]).mean()
                value = 0.5 * value + 0.5 * local
            losses[name] = value
        return losses

    def predict(self, feats: Any) -> Tensor:
        """Test feature ``(B, (1 + num_groups) * D)``, not normalised."""
        features = [
            self._test_feature(feature, bnneck)
            for feature, bnneck in zip(self.features(feats), self.bnnecks)
        ]
        return torch.cat([features[0], *(f / self.num_groups for f in features[1:])], dim=1)
