"""Distillation from logits: NKD, and the baselines KD and DKD.

All are means over the batch, computed in float32 whatever comes in, without copies of the logits
that leave classes out and without waiting for the device.
"""

import torch
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..option_checks import check_numbers


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is in float64: half precision is too coarse to rank classes."""
    return x if x.dtype == torch.float64 else x.float()


def target_class(target: Tensor) -> Tensor:
    """Indices ``(N,)`` of the target classes; of scores ``(N, C)`` the class with the highest."""
    return target if target.ndim == 1 else target.argmax(dim=1)


def check_logits(logits_s: Tensor, logits_t: Tensor) -> None:
    """Check that two networks tell the same classes apart.

    Raises:
        ValueError: If the logits are not ``(N, C)`` or differ in shape.
    """
    if logits_s.ndim != 2 or logits_s.shape != logits_t.shape:
        raise ValueError(
            f'Logits of shape {tuple(logits_s.shape)} from the student and {tuple(logits_t.shape)} '
            'from the teacher: distillation needs (N, C) twice, so both networks must be trained '
            'on the same classes, in the same order'
        )


def nontarget_logits(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits over the temperature, with minus infinity in the column of each row's target."""
    return (logits / temperature).scatter(1, target[:, None], float('-inf'))


def _nontarget_cross_entropy(
    logits_s: Tensor, logits_t: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Per-sample cross-entropy of the softmax over non-targets, and the teacher's masked logits."""
    masked_t = nontarget_logits(logits_t, target, temperature)
    # Exactly 0 at the target, and multiplied by finite logits: no 0 * inf.
    prob_t = masked_t.softmax(dim=1)
    lse_s = nontarget_logits(logits_s, target, temperature).logsumexp(dim=1)
    return lse_s - (prob_t * (logits_s / temperature)).sum(dim=1), masked_t


def nkd_parts(
    logits_s: Tensor, logits_t: Tensor, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Target and non-target part of :func:`nkd_loss`, before the factors."""
    check_logits(logits_s, logits_t)
    if logits_s.shape[1] < 2:
        raise ValueError('NKD needs at least two classes')
    logits_s, logits_t = full_precision(logits_s), full_precision(logits_t.detach())
    target = target_class(target)
    prob_t = logits_t.softmax(dim=1).gather(1, target[:, None])
    log_prob_s = logits_s.log_softmax(dim=1).gather(1, target[:, None])
    nontarget, _ = _nontarget_cross_entropy(logits_s, logits_t, target, temperature)
    return -(prob_t * log_prob_s).mean(), nontarget.mean()


def nkd_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """Normalized knowledge distillation (arXiv 2303.13005, Eq. 7).

    Cross-entropy of the target weighted by the teacher's probability, without temperature, plus
    ``gamma * temperature**2`` times the cross-entropy between the two softmaxes over the other
    classes. A cross-entropy, not a divergence: a perfect student does not reach 0.

    Args:
        logits_s (Tensor): Student ``(N, C)``.
        logits_t (Tensor): Teacher ``(N, C)``; no gradient passes.
        target (Tensor): Classes ``(N,)``, or scores ``(N, C)`` of which the highest counts.
        temperature (float): Of the non-target part. Defaults to 1.0.
        gamma (float): Weight of the non-target part. Defaults to 1.5.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: If the logits differ in shape or have one class.
    """
    target_part, nontarget_part = nkd_parts(logits_s, logits_t, target, temperature)
    return target_part + gamma * temperature**2 * nontarget_part


def kd_loss(
    logits_s: Tensor, logits_t: Tensor, temperature: float = 4.0, alpha: float = 0.5
) -> Tensor:
    """Knowledge distillation (Hinton et al., arXiv 1503.02531), as a cross-entropy.

    Args:
        logits_s (Tensor): Student ``(N, C)``.
        logits_t (Tensor): Teacher ``(N, C)``; no gradient passes.
        temperature (float): Of both softmaxes. Defaults to 4.0.
        alpha (float): Weight; the loss on labels has ``1 - alpha``. Defaults to 0.5.

    Returns:
        Tensor: Scalar.
    """
    check_logits(logits_s, logits_t)
    prob_t = (full_precision(logits_t.detach()) / temperature).softmax(dim=1)
    log_prob_s = (full_precision(logits_s) / temperature).log_softmax(dim=1)
    return -alpha * temperature**2 * (prob_t * log_prob_s).sum(dim=1).mean()


def dkd_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    target: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Tensor:
    """Decoupled knowledge distillation (arXiv 2203.08679, Eq. 7).

    Args:
        logits_s (Tensor): Student ``(N, C)``.
        logits_t (Tensor): Teacher ``(N, C)``; no gradient passes.
        target (Tensor): Classes ``(N,)``, or scores ``(N, C)`` of which the highest counts.
        temperature (float): Of all softmaxes. Defaults to 4.0.
        alpha (float): Weight of the divergence of (target, all others). Defaults to 1.0.
        beta (float): Weight of the divergence over the others. Defaults to 6.0.

    Returns:
        Tensor: Scalar.
    """
    check_logits(logits_s, logits_t)
    logits_s, logits_t = full_precision(logits_s), full_precision(logits_t.detach())
    target = target_class(target)
    cross, masked_t = _nontarget_cross_entropy(logits_s, logits_t, target, temperature)
    own, _ = _nontarget_cross_entropy(logits_t, logits_t, target, temperature)
    binary_s = _log_target_and_rest(logits_s / temperature, target)
    binary_t = _log_target_and_rest(logits_t / temperature, target, masked_t)
    tckd = (binary_t.exp() * (binary_t - binary_s)).sum(dim=1).mean()
    return temperature**2 * (alpha * tckd + beta * (cross - own).mean())


def _log_target_and_rest(logits: Tensor, target: Tensor, masked: Tensor | None = None) -> Tensor:
    """Log-probabilities ``(N, 2)`` of the target and of all other classes together."""
    if masked is None:
        masked = nontarget_logits(logits, target)
    rest = masked.logsumexp(dim=1, keepdim=True)
    return torch.cat((logits.gather(1, target[:, None]), rest), dim=1).log_softmax(dim=1)


class DistillationLoss(nn.Module):
    """Loss between what a student and, perhaps, a teacher compute.

    The names of ``forward``'s arguments say what a loss wants: ``student_*`` and ``teacher_*`` are
    taps of the two networks, ``target`` the labels; others need a default. Returns a scalar.

    Attributes:
        head_loss_weight (float): Factor on the student's own losses.
    """

    head_loss_weight = 1.0

    def init_weights(self) -> None:
        """PyTorch's initialisation, whatever the model's ``init_cfg`` did to its linear layers."""
        for module in self.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()


@MODELS.register_module()
class NKDLoss(DistillationLoss):
    """See :func:`nkd_loss`.

    Args:
        temperature (float): Defaults to 1.0.
        gamma (float): Defaults to 1.5.
        loss_weight (float): Factor on the loss. Defaults to 1.0.
    """

    def __init__(
        self, temperature: float = 1.0, gamma: float = 1.5, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_numbers(gamma=gamma, loss_weight=loss_weight)
        self.temperature = check_temperature(temperature)
        self.gamma = gamma
        self.loss_weight = loss_weight

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits ``(N, C)`` with targets ``(N,)`` or scores ``(N, C)``."""
        loss = nkd_loss(student_logits, teacher_logits, target, self.temperature, self.gamma)
        return self.loss_weight * loss


@MODELS.register_module()
class KDLoss(DistillationLoss):
    """See :func:`kd_loss`; the student's own losses are multiplied by ``1 - alpha``.

    Args:
        temperature (float): Defaults to 4.0.
        alpha (float): Defaults to 0.5.
        loss_weight (float): Factor on the loss. Defaults to 1.0.
    """

    def __init__(
        self, temperature: float = 4.0, alpha: float = 0.5, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_numbers(high=1, alpha=alpha)
        check_numbers(loss_weight=loss_weight)
        self.temperature = check_temperature(temperature)
        self.alpha = alpha
        self.loss_weight = loss_weight
        self.head_loss_weight = 1 - alpha

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Scalar loss of logits ``(N, C)``."""
        loss = kd_loss(student_logits, teacher_logits, self.temperature, self.alpha)
        return self.loss_weight * loss


@MODELS.register_module()
class DKDLoss(DistillationLoss):
    """See :func:`dkd_loss`.

    Args:
        temperature (float): Defaults to 4.0.
        alpha (float): Defaults to 1.0.
        beta (float): Defaults to 6.0.
        loss_weight (float): Factor on the loss. Defaults to 1.0.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 6.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_numbers(alpha=alpha, beta=beta, loss_weight=loss_weight)
        self.temperature = check_temperature(temperature)
        self.alpha = alpha
        self.beta = beta
        self.loss_weight = loss_weight

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits ``(N, C)`` with targets ``(N,)`` or scores ``(N, C)``."""
        loss = dkd_loss(
            student_logits, teacher_logits, target, self.temperature, self.alpha, self.beta
        )
        return self.loss_weight * loss


def check_temperature(temperature: float) -> float:
    """The temperature, if it is one.

    Raises:
        ValueError: Unless it is positive.
    """
    check_numbers(temperature=temperature)
    if not temperature > 0:
        raise ValueError(f'temperature must be positive, got {temperature}')
    return temperature
