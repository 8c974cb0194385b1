import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.registry import MODELS


def batch_hard_distances(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance of each anchor to its hardest positive and hardest negative.

    Batch-hard mining of Hermans et al. (arXiv 1703.07737, Eq. 5) as in TransReID: Euclidean
    distance ``sqrt(max(d^2, 1e-12))``, the positives include the anchor itself. Works for any mix
    of labels, without a host synchronisation.

    Args:
        features (Tensor): ``(B, D)`` float32.
        labels (Tensor): ``(B,)``.

    Returns:
        tuple: ``dist_ap`` and ``dist_an``, ``(B,)`` each, and ``valid`` ``(B,)``, whether the
        anchor has another image of its label and one of another label.
    """
    squared = features.pow(2).sum(dim=1)
    distance = squared[:, None] + squared[None, :] - 2 * features @ features.T
    distance = distance.clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels[None, :]
    dist_ap = distance.masked_fill(~same, -torch.inf).amax(dim=1)
    dist_an = distance.masked_fill(same, torch.inf).amin(dim=1)
    valid = (same.sum(dim=1) > 1) & ~same.all(dim=1)
    return dist_ap, dist_an, valid


def batch_hard_triplet_loss(
    features: Tensor, labels: Tensor, margin: float | None = None, normalize: bool = False
) -> Tensor:
    """Triplet loss with batch-hard mining, always computed in float32.

    Args:
        features (Tensor): ``(B, D)``.
        labels (Tensor): ``(B,)`` identities.
        margin (float, optional): ``mean(max(0, d_ap - d_an + margin))``; None for the soft margin
            ``mean(log(1 + exp(d_ap - d_an)))``.
        normalize (bool): L2-normalise the features first. Defaults to False.

    Returns:
        Tensor: Scalar, the mean over anchors that have a positive and a negative; 0 without any.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        if normalize:
            features = features / (features.norm(dim=1, keepdim=True) + 1e-12)
        dist_ap, dist_an, valid = batch_hard_distances(features, labels)
        # Zero before the loss, not after: inf - inf in an unused branch would make NaN gradients.
        difference = torch.where(valid, dist_ap, 0.0) - torch.where(valid, dist_an, 0.0)
        if margin is None:
            losses = F.softplus(difference)
        else:
            losses = F.relu(difference + margin)
        return torch.where(valid, losses, 0.0).sum() / valid.sum().clamp(min=1)


@MODELS.register_module()
class TripletLoss(nn.Module):
    """Batch-hard triplet loss; see :func:`batch_hard_triplet_loss`.

    Args:
        margin (float, optional): Margin; None for the soft margin, as in TransReID's recipe.
        normalize (bool): L2-normalise the features first. Defaults to False.
        loss_weight (float): Factor on the loss. Defaults to 1.0.
    """

    def __init__(
        self, margin: float | None = None, normalize: bool = False, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        if margin is not None and margin < 0:
            raise ValueError(f'margin must be None (soft margin) or >= 0, got {margin}')
        self.margin = margin
        self.normalize = normalize
        self.loss_weight = loss_weight

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of features ``(B, D)`` with labels ``(B,)``."""
        loss = batch_hard_triplet_loss(features, labels, self.margin, self.normalize)
        return self.loss_weight * loss
