"""Losses of NViT (arXiv 2110.04869, Sec. 3.4): a CNN teaches one token, the unpruned model all.

Logits come as pairs of the class token's and the distillation token's classifier.
"""

import torch.nn.functional as F
from torch import Tensor

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
    if distill == 'hard':
        taught = F.cross_entropy(student[1], teacher.argmax(dim=1))
    elif distill == 'soft':
        taught = temperature**2 * element_mean_kl(student[1], teacher, temperature)
    else:
        raise ValueError(f"distill must be 'hard' or 'soft', got {distill!r}")
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
