"""Losses of NViT (arXiv 2110.04869, Sec. 3.4): a CNN teaches one token, the unpruned model all.

Logits come as pairs of the class token's and the distillation token's classifier.
"""

import torch.nn.functional as F
from torch import Tensor

from vitdown.registry import MODELS

from .distillation import DistillationLoss

LogitPair = tuple[Tensor, Tensor]


def average(logits: LogitPair) -> Tensor:
    """Mean of the two classifiers' logits, the model's prediction."""
    return (logits[0] + logits[1]) / 2


def element_mean_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of softened predictions, averaged over all ``B * C`` elements.

    Without the usual factor ``temperature**2``. Times C it is the mean over the batch.

    Args:
        student (Tensor): Logits ``(B, C)``.
        teacher (Tensor): Logits ``(B, C)``; no gradient passes.
        temperature (float): Of both softmaxes.
    """
    log_prob_s = (student / temperature).log_softmax(dim=-1)
    log_prob_t = (teacher.detach() / temperature).log_softmax(dim=-1)
    return (log_prob_t.exp() * (log_prob_t - log_prob_s)).mean()


def taught_by_cnn(student: Tensor, teacher: Tensor, distill: str, temperature: float) -> Tensor:
    """The second term of :func:`cnn_distillation_loss`, without its weight."""
    _check_distill(distill)
    if distill == 'hard':
        return F.cross_entropy(student, teacher.argmax(dim=1))
    return temperature**2 * element_mean_kl(student, teacher, temperature)


def _check_distill(distill: str) -> None:
    if distill not in ('hard', 'soft'):
        raise ValueError(f"distill must be 'hard' or 'soft', got {distill!r}")


def cnn_distillation_loss(
    student: LogitPair,
    target: Tensor,
    teacher: Tensor,
    distill: str = 'hard',
    temperature: float = 3.0,
    base_weight: float = 0.5,
    distill_weight: float = 0.5,
) -> Tensor:
    """Cross-entropy of the averaged prediction, and distillation of the second token by a CNN.

    Args:
        student (tuple[Tensor, Tensor]): Logits ``(B, C)`` of class and distillation token.
        target (Tensor): Classes ``(B,)``, or scores ``(B, C)`` of mixed or smoothed labels.
        teacher (Tensor): Logits ``(B, C)`` of the CNN; no gradient passes.
        distill (str): ``'hard'``: the teacher's most likely class is the label. ``'soft'``:
            ``temperature**2`` times :func:`element_mean_kl`.
        temperature (float): Of ``'soft'``. Defaults to 3.0.
        base_weight (float): Of the cross-entropy with ``target``. Defaults to 0.5.
        distill_weight (float): Of the distillation. Defaults to 0.5.

    Raises:
        ValueError: For another ``distill``.
    """
    taught = taught_by_cnn(student[1], teacher, distill, temperature)
    return base_weight * F.cross_entropy(average(student), target) + distill_weight * taught


def full_model_loss(
    student: LogitPair, teacher: LogitPair, temperature: float, per_head: bool = False
) -> Tensor:
    """:func:`element_mean_kl` between the pruned model and the model before pruning.

    Args:
        student (tuple[Tensor, Tensor]): Logits ``(B, C)`` of class and distillation token.
        teacher (tuple[Tensor, Tensor]): Likewise; no gradient passes.
        temperature (float): The authors take 3 while pruning, 20 for fine-tuning.
        per_head (bool): Whether each classifier learns from its own and the two divergences are
            averaged (fine-tuning), instead of the averaged predictions (pruning).
    """
    if not per_head:
        return element_mean_kl(average(student), average(teacher), temperature)
    parts = (element_mean_kl(s, t, temperature) for s, t in zip(student, teacher))
    return sum(parts) / 2


@MODELS.register_module()
class CNNDistillationLoss(DistillationLoss):
    """What a CNN teaches the distillation token, see :func:`cnn_distillation_loss`.

    The student's own loss on labels is multiplied by ``base_weight``.

    Args:
        distill (str): ``'hard'`` or ``'soft'``.
        temperature (float): Of ``'soft'``. Defaults to 3.0.
        base_weight (float): Defaults to 0.5.
        distill_weight (float): Defaults to 0.5.
    """

    def __init__(
        self,
        distill: str = 'hard',
        temperature: float = 3.0,
        base_weight: float = 0.5,
        distill_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.distill = distill
        self.temperature = temperature
        self.head_loss_weight = base_weight
        self.distill_weight = distill_weight
        _check_distill(distill)

    def forward(self, student_dist: Tensor, teacher_logits: Tensor) -> Tensor:
        """Scalar loss of logits ``(B, C)`` of the distillation token and of the CNN."""
        taught = taught_by_cnn(student_dist, teacher_logits, self.distill, self.temperature)
        return self.distill_weight * taught


@MODELS.register_module()
class FullModelLoss(DistillationLoss):
    """What the model before pruning teaches what is left of it, see :func:`full_model_loss`.

    Args:
        temperature (float): Defaults to 20.0, as for fine-tuning; 3.0 while pruning.
        per_head (bool): Defaults to True, as for fine-tuning; False while pruning.
        loss_weight (float): Factor on the divergence's mean over the batch. Defaults to 100.0:
            the authors' 1e5 on the mean over the elements, for 1000 classes.
    """

    def __init__(
        self, temperature: float = 20.0, per_head: bool = True, loss_weight: float = 100.0
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.per_head = per_head
        self.loss_weight = loss_weight

    def forward(
        self, student_cls: Tensor, student_dist: Tensor, teacher_cls: Tensor, teacher_dist: Tensor
    ) -> Tensor:
        """Scalar loss of logits ``(B, C)`` of both tokens of both models."""
        loss = full_model_loss(
            (student_cls, student_dist),
            (teacher_cls, teacher_dist),
            self.temperature,
            self.per_head,
        )
        return self.loss_weight * student_cls.shape[1] * loss
