import math

import torch
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..option_checks import check_integers, check_numbers
from .distillation import DistillationLoss, full_precision


@MODELS.register_module()
class ViTKDLoss(DistillationLoss):
    """Feature distillation between ViTs (arXiv 2209.02432).

    The student's first two layers mimic the teacher's; from a random part of its last layer's
    tokens two convolutions generate the teacher's others. Squared errors, summed and divided by
    the batch size.

    Args:
        student_dims (int): Width Ds of the student's tokens.
        teacher_dims (int): Width Dt of the teacher's tokens.
        alpha (float): Weight of mimicking. Defaults to 3e-5.
        beta (float): Weight of generating. Defaults to 3e-6.
        mask_ratio (float): Share of the last layer's tokens that are masked. Defaults to 0.5.
        loss_weight (float): Factor on the loss. Defaults to 1.0.
    """

    def __init__(
        self,
        student_dims: int,
        teacher_dims: int,
        alpha: float = 3e-5,
        beta: float = 3e-6,
        mask_ratio: float = 0.5,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_integers('student_dims', student_dims, 1)
        check_integers('teacher_dims', teacher_dims, 1)
        check_numbers(alpha=alpha, beta=beta, mask_ratio=mask_ratio, loss_weight=loss_weight)
        if not 0 < mask_ratio <= 1:
            raise ValueError(f'mask_ratio must be in (0, 1], got {mask_ratio}')
        self.teacher_dims = teacher_dims
        self.alpha = alpha
        self.beta = beta
        self.mask_ratio = mask_ratio
        self.loss_weight = loss_weight

        def align() -> nn.Module:
            if student_dims == teacher_dims:
                return nn.Identity()
            return nn.Linear(student_dims, teacher_dims)

        self.align2 = nn.ModuleList(align() for _ in range(2))
        self.align = align()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, teacher_dims))
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_dims, teacher_dims, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_dims, teacher_dims, 3, padding=1),
        )

    def random_mask(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are masked.

        Args:
            noise (Tensor): ``(B, P)``; the tokens with the lowest values stay.

        Returns:
            tuple: Mask ``(B, P)``, 1 where masked, and the rank of each token, ``(B, P)``.
        """
        rank = noise.argsort(dim=1).argsort(dim=1)
        return (rank >= int(noise.shape[1] * (1 - self.mask_ratio))).float(), rank

    def parts(
        self,
        student_low: Tensor,
        student_high: Tensor,
        teacher_low: Tensor,
        teacher_high: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The losses of mimicking and of generating; arguments as in :meth:`forward`."""
        batch, num_patches = student_high.shape[:2]
        side = math.isqrt(num_patches)
        if student_high.shape[1] != teacher_high.shape[1] or side * side != num_patches:
            raise ValueError(
                f'{num_patches} patches of the student and {teacher_high.shape[1]} of the '
                'teacher: ViTKD needs one square grid for both'
            )
        if teacher_high.shape[2] != self.teacher_dims:
            raise ValueError(
                f"The teacher's tokens have width {teacher_high.shape[2]}, ViTKD was made for "
                f'{self.teacher_dims}; set teacher_dims={teacher_high.shape[2]}'
            )
        low = torch.stack([align(x) for align, x in zip(self.align2, student_low.unbind(1))], 1)
        low_error = full_precision(low) - full_precision(teacher_low.detach())
        mimic = self.alpha / batch * low_error.square().sum()

        if noise is None:
            noise = torch.rand(batch, num_patches, device=student_high.device)
        mask = self.random_mask(noise)[0][..., None]
        x = self.align(student_high)
        x = torch.where(mask.bool(), self.mask_token.to(x.dtype), x)
        x = self.generation(x.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
        error = (full_precision(x) - full_precision(teacher_high.detach())) * mask
        generation = self.beta / (self.mask_ratio * batch) * error.square().sum()
        return mimic, generation

    def forward(
        self,
        student_low: Tensor,
        student_high: Tensor,
        teacher_low: Tensor,
        teacher_high: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss.

        Args:
            student_low (Tensor): ``(B, 2, P, Ds)``, patch tokens after the first two layers.
            student_high (Tensor): ``(B, P, Ds)``, patch tokens after the final norm.
            teacher_low (Tensor): ``(B, 2, P, Dt)``; no gradient passes.
            teacher_high (Tensor): ``(B, P, Dt)``; no gradient passes.
            noise (Tensor, optional): ``(B, P)``, see :meth:`random_mask`; drawn if None.

        Raises:
            ValueError: If the patch grids differ or are not square, or the teacher's tokens are not
                as wide as ``teacher_dims``.
        """
        return self.loss_weight * sum(
            self.parts(student_low, student_high, teacher_low, teacher_high, noise)
        )
