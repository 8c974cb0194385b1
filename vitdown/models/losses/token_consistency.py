from numbers import Real

from torch import Tensor, nn

from vitdown.registry import MODELS

from ..option_checks import check_numbers


def label_confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability that a classifier gives to the true label, without gradient.

    Args:
        logits (Tensor): ``(B, K)``.
        targets (Tensor): Labels ``(B,)``, or scores ``(B, K)`` of mixed images, of which every
            label above the smallest counts: that is what label smoothing gives to all. Where all
            are equal, all count; so of two classes the larger one alone does, or both.

    Returns:
        Tensor: ``(B,)`` float32 in [0, 1].
    """
    probabilities = logits.detach().float().softmax(dim=-1)
    if targets.ndim == 1:
        return probabilities.gather(1, targets[:, None])[:, 0]
    mixed = targets > targets.amin(dim=-1, keepdim=True)
    mixed |= targets == targets.amax(dim=-1, keepdim=True)
    return (probabilities * mixed).sum(dim=-1)


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the channels of the squared difference of features ``(B, C)``: ``(B,)`` float32.

    The teacher gets no gradient.
    """
    return (teacher.detach().float() - student.float()).square().mean(dim=-1)


@MODELS.register_module()
class TokenConsistencyLoss(nn.Module):
    """Token reduction consistency of MCTF (arXiv 2403.10030, Sec. 3.4).

    Draws the feature of an image whose tokens were fused much to the one whose tokens were fused
    little. Only images that the classifier gets right with some confidence count.

    Args:
        loss_weight (float): Defaults to 3.
        conf_thr (float, optional): An image counts where the probability of its label is above.
            Defaults to 0.4; None for all images.
    """

    def __init__(self, loss_weight: float = 3.0, conf_thr: float | None = 0.4) -> None:
        super().__init__()
        check_numbers(loss_weight=loss_weight)
        if conf_thr is not None and not (isinstance(conf_thr, Real) and 0 <= conf_thr < 1):
            raise ValueError(f'conf_thr must be in [0, 1) or None, got {conf_thr!r}')
        self.loss_weight = loss_weight
        self.conf_thr = conf_thr

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Loss of one batch, 0 where no image counts.

        Args:
            student (Tensor): Features ``(B, C)`` with many tokens fused.
            teacher (Tensor): Features ``(B, C)`` with few tokens fused; no gradient.
            logits (Tensor, optional): The student's ``(B, K)``, needed with ``conf_thr``.
            targets (Tensor, optional): See :func:`label_confidence`, needed with ``conf_thr``.
        """
        distance = squared_distance(student, teacher)
        if self.conf_thr is None:
            return self.loss_weight * distance.mean()
        keep = (label_confidence(logits, targets) > self.conf_thr).to(distance.dtype)
        return self.loss_weight * (keep * distance).sum() / keep.sum().clamp(min=1)
