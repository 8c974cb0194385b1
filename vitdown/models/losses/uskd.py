"""Universal self-knowledge distillation: soft labels without a teacher (arXiv 2303.13005)."""

import torch
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..option_checks import check_flags, check_integers, check_numbers
from .distillation import DistillationLoss, full_precision

WEAK_LABEL_SMOOTHING = 0.1
RANK_EPS = 1e-6


def top_targets(target: Tensor) -> tuple[Tensor, Tensor]:
    """Target classes and their scores.

    Args:
        target (Tensor): Classes ``(N,)``, or scores ``(N, C)`` of which the two highest count (of
            equal ones the lower class first).

    Returns:
        tuple: Classes ``(N, K)`` and scores ``(N, K)``, K = 1 or 2.
    """
    if target.ndim == 1:
        return target[:, None], torch.ones_like(target, dtype=torch.float32)[:, None]
    # Two maxima instead of a sort; the first of equal ones is taken.
    first = target.argmax(dim=1, keepdim=True)
    second = target.scatter(1, first, float('-inf')).argmax(dim=1, keepdim=True)
    labels = torch.cat((first, second), dim=1)
    return labels, full_precision(target.gather(1, labels))


def soft_target(logits: Tensor, labels: Tensor, values: Tensor) -> Tensor:
    """Soft labels ``(N, K)`` of the target classes (Sec. 3.3).

    The squared probability moves each sample's label around its value, in step with the batch:
    a well-learnt sample gets more than its value, a badly learnt one less. 0 where the value is.

    Args:
        logits (Tensor): ``(N, C)``.
        labels (Tensor): See :func:`top_targets`.
        values (Tensor): See :func:`top_targets`.
    """
    squared = logits.softmax(dim=1).gather(1, labels).square()
    return (squared + values - squared.mean(dim=0)).masked_fill(values == 0, 0.0)


def check_rank_mode(rank_mode: str) -> None:
    """Check the name of a way to rank.

    Raises:
        ValueError: If it is none.
    """
    if rank_mode not in ('log_prob', 'prob'):
        raise ValueError(f"rank_mode must be 'log_prob' or 'prob', got {rank_mode!r}")


def rank_score(
    logits: Tensor, weak_logits: Tensor, targets: Tensor, rank_mode: str = 'log_prob'
) -> Tensor:
    """What the non-target classes are ranked by, ``(N, C)``.

    Args:
        logits (Tensor): ``(N, C)``.
        weak_logits (Tensor): ``(N, C)`` of the weak classifier.
        targets (Tensor): ``(N, C)`` bool, True at the target classes.
        rank_mode (str): ``'log_prob'`` takes the log-probabilities of ``logits`` as the official
            code does, ``'prob'`` their probabilities as the paper's equation does.
    """
    check_rank_mode(rank_mode)
    weak = weak_logits.softmax(dim=1)
    strong = logits.log_softmax(dim=1) if rank_mode == 'log_prob' else logits.softmax(dim=1)

    def normalized(scores: Tensor) -> Tensor:
        of_targets = (scores * targets).sum(dim=1, keepdim=True)
        return scores / (1 - of_targets + RANK_EPS)

    return normalized(weak) + normalized(strong)


def zipf_labels(score: Tensor, targets: Tensor, zipf: Tensor) -> Tensor:
    """Soft labels of the non-target classes by Zipf's law, ``(N, C)``; rows sum to 1.

    Target classes take their places in the ranking but get 0.

    Args:
        score (Tensor): ``(N, C)``.
        targets (Tensor): ``(N, C)`` bool, True at the target classes.
        zipf (Tensor): ``(C,)`` value of each place, see :func:`zipf_row`.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    by_class = torch.empty_like(score).scatter(1, order, zipf.to(score).expand_as(score))
    by_class = by_class.masked_fill(targets, 0.0)
    return by_class / by_class.sum(dim=1, keepdim=True)


def zipf_row(num_classes: int) -> Tensor:
    """1, 1/2, 1/3 ... ``(C,)``."""
    return 1 / torch.arange(1, num_classes + 1, dtype=torch.float32)


def weak_target(target: Tensor, num_classes: int) -> Tensor:
    """Smoothed labels ``(N, C)`` of the weak classifier."""
    if target.ndim == 1:
        target = nn.functional.one_hot(target, num_classes).float()
    return (1 - WEAK_LABEL_SMOOTHING) * target + WEAK_LABEL_SMOOTHING / num_classes


def uskd_parts(
    logits: Tensor,
    weak_logits: Tensor,
    target: Tensor,
    mu: float = 0.005,
    rank_mode: str = 'log_prob',
    exclude_zero_targets: bool = False,
    zipf: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Target, non-target and weak part of :func:`uskd_loss`; the last with ``mu``."""
    if logits.ndim != 2 or logits.shape != weak_logits.shape:
        raise ValueError(
            f'Logits of shape {tuple(logits.shape)}, but the weak classifier gives '
            f'{tuple(weak_logits.shape)}; set num_classes={logits.shape[-1]} in USKD'
        )
    logits, weak_logits = full_precision(logits), full_precision(weak_logits)
    num_classes = logits.shape[1]
    with torch.no_grad():
        labels, values = top_targets(target)
        used = torch.ones_like(labels, dtype=torch.bool)
        if not exclude_zero_targets:
            used = values > 0
        targets = torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels, used)
        soft = soft_target(logits, labels, values)
        score = rank_score(logits, weak_logits, targets, rank_mode)
        if zipf is None:
            zipf = zipf_row(num_classes).to(logits.device)
        rest = zipf_labels(score, targets, zipf)
        weak = weak_target(target, num_classes)
    target_part = -(soft * logits.log_softmax(dim=1).gather(1, labels)).sum(dim=1).mean()
    lse = logits.masked_fill(targets, float('-inf')).logsumexp(dim=1)
    nontarget_part = (lse - (rest * logits).sum(dim=1)).mean()
    weak_part = -mu * (weak * weak_logits.log_softmax(dim=1)).sum(dim=1).mean()
    return target_part, nontarget_part, weak_part


def uskd_loss(
    logits: Tensor,
    weak_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    rank_mode: str = 'log_prob',
    exclude_zero_targets: bool = False,
    zipf: Tensor | None = None,
) -> Tensor:
    """Universal self-knowledge distillation (arXiv 2303.13005, Sec. 3.3).

    Args:
        logits (Tensor): ``(N, C)``.
        weak_logits (Tensor): ``(N, C)`` of a linear classifier on a middle layer.
        target (Tensor): Classes ``(N,)``, or scores ``(N, C)`` of mixed images.
        alpha (float): Weight of the target part. Defaults to 1.0.
        beta (float): Weight of the non-target part. Defaults to 0.1.
        mu (float): Weight of the weak classifier's cross-entropy. Defaults to 0.005.
        rank_mode (str): See :func:`rank_score`. Defaults to ``'log_prob'``.
        exclude_zero_targets (bool): Leave the second target class of scores out of the non-target
            distribution even if its score is 0 (both images of a mix had one class), as the
            official code does. Defaults to False.
        zipf (Tensor, optional): :func:`zipf_row` on the device, to save making it.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: If the two logits differ in shape.
    """
    target_part, nontarget_part, weak_part = uskd_parts(
        logits, weak_logits, target, mu, rank_mode, exclude_zero_targets, zipf
    )
    return alpha * target_part + beta * nontarget_part + weak_part


@MODELS.register_module()
class USKDLoss(DistillationLoss):
    """Self-distillation with a weak classifier ``fc`` on a middle layer; see :func:`uskd_loss`.

    Args:
        in_channels (int): Width D of the middle feature.
        num_classes (int): Number C of classes. Defaults to 1000.
        alpha (float): Defaults to 1.0.
        beta (float): Defaults to 0.1.
        mu (float): Defaults to 0.005.
        rank_mode (str): ``'log_prob'`` or ``'prob'``. Defaults to ``'log_prob'``.
        exclude_zero_targets (bool): Defaults to False.
        loss_weight (float): Factor on the loss. Defaults to 1.0.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1000,
        alpha: float = 1.0,
        beta: float = 0.1,
        mu: float = 0.005,
        rank_mode: str = 'log_prob',
        exclude_zero_targets: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_integers('in_channels', in_channels, 1)
        check_integers('num_classes', num_classes, 1)
        check_numbers(alpha=alpha, beta=beta, mu=mu, loss_weight=loss_weight)
        check_flags(exclude_zero_targets=exclude_zero_targets)
        check_rank_mode(rank_mode)
        if num_classes < 3:
            raise ValueError(f'USKD ranks non-target classes; num_classes={num_classes} is too few')
        self.alpha = alpha
        self.beta = beta
        self.mu = mu
        self.rank_mode = rank_mode
        self.exclude_zero_targets = exclude_zero_targets
        self.loss_weight = loss_weight
        self.fc = nn.Linear(in_channels, num_classes)
        self.register_buffer('zipf', zipf_row(num_classes), persistent=False)

    def forward(self, student_mid: Tensor, student_logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            student_mid (Tensor): Middle feature ``(N, D)``.
            student_logits (Tensor): ``(N, C)``.
            target (Tensor): Classes ``(N,)`` or scores ``(N, C)``.

        Raises:
            ValueError: If the feature is not ``(N, in_channels)``.
        """
        if student_mid.ndim != 2 or student_mid.shape[1] != self.fc.in_features:
            raise ValueError(
                f'The middle feature has shape {tuple(student_mid.shape)}, USKD was made for '
                f'(N, {self.fc.in_features}); set in_channels={student_mid.shape[-1]}'
            )
        loss = uskd_loss(
            student_logits,
            self.fc(student_mid),
            target,
            self.alpha,
            self.beta,
            self.mu,
            self.rank_mode,
            self.exclude_zero_targets,
            self.zipf,
        )
        return self.loss_weight * loss
