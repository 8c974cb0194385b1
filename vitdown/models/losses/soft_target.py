from torch import Tensor

from vitdown.registry import MODELS

from .distillation import DistillationLoss, kd_loss


@MODELS.register_module()
class SoftTargetLoss(DistillationLoss):
    """Cross-entropy with a teacher's probabilities, as OFQ distills (arXiv 2302.02210).

    :func:`kd_loss` at temperature 1, beside the student's own losses, which keep their weight.

    Args:
        loss_weight (float): Defaults to 1.0.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Scalar loss of logits ``(N, C)``."""
        return self.loss_weight * kd_loss(student_logits, teacher_logits, 1.0, alpha=1.0)
