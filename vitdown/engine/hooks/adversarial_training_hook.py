import math
from collections.abc import Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from vitdown.datasets.unlearnable.filters import check_filter_options
from vitdown.models.attacks import deconvolution_attack, pgd_attack
from vitdown.models.distillation import evaluation_mode
from vitdown.registry import HOOKS


class AttackHook(Hook):
    """Base of hooks that train on attacked images instead of the batch's own.

    Works on models that compute losses by ``forward(inputs, data_samples, mode='loss')`` and
    normalise by ``data_preprocessor.mean`` and ``std``: mmpretrain's classifiers, but for those
    with ``with_cp=True``, and ``ReIdentifier``. One such hook a training. The attack sees pixels in
    0..1. Model, checkpoint and evaluation stay as they are; labels are not touched.
    """

    def attack(self, model: nn.Module, pixels: Tensor, data_samples: Sequence) -> Tensor:
        """Attacked images ``(N, C, H, W)`` in 0..1, for such images."""
        raise NotImplementedError

    def before_train(self, runner: Runner) -> None:
        """Attack all batches from now on.

        Raises:
            ValueError: There is another such hook.
        """
        names = [type(hook).__name__ for hook in runner.hooks if isinstance(hook, AttackHook)]
        if len(names) > 1:
            raise ValueError(f'{" and ".join(names)} would attack each other; leave one of them.')
        model = getattr(runner.model, 'module', runner.model)
        self._busy = False
        self._handle = model.register_forward_pre_hook(self._replace_inputs, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        self._handle.remove()

    def _replace_inputs(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        if self._busy or kwargs.get('mode') != 'loss':
            return None
        inputs, data_samples = kwargs.get('inputs'), kwargs.get('data_samples')
        if inputs is None or data_samples is None:
            raise TypeError(
                f'{type(self).__name__}: {type(model).__name__} is called without inputs and '
                'data_samples by name; it needs a data preprocessor that gives a dict of both, '
                'such as mmpretrain.ClsDataPreprocessor.'
            )
        mean, std = _normalisation(model, inputs)
        self._busy = True
        try:
            pixels = ((inputs * std + mean) / 255).clamp(0, 1)
            attacked = self.attack(model, pixels, data_samples)
        except RuntimeError as error:
            if 'use_reentrant' not in str(error):
                raise
            raise ValueError(
                f'{type(self).__name__} needs gradients of images, which the model does not give '
                'while it recomputes layers to save memory: set with_cp=False in its backbone.'
            ) from error
        finally:
            self._busy = False
        return args, {**kwargs, 'inputs': (attacked * 255 - mean) / std}


def _normalisation(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    preprocessor = model.data_preprocessor
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:
        return inputs.new_zeros(1), inputs.new_ones(1)
    return mean.to(inputs), std.to(inputs)


def _loss(model: nn.Module, pixels: Tensor, data_samples: Sequence) -> Tensor:
    mean, std = _normalisation(model, pixels)
    losses = model(inputs=(pixels * 255 - mean) / std, data_samples=data_samples, mode='loss')
    return model.parse_losses(losses)[0]


def _check_steps(steps: int) -> None:
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f'steps must be an integer of at least 1, got {steps}.')


@HOOKS.register_module()
class PGDTrainingHook(AttackHook):
    """Adversarial training with projected gradient descent: every batch is attacked.

    During the attack the model is in evaluation mode. The defaults are those of the experiments
    with class-wise filters in the paper.

    Args:
        eps: Radius in pixel values of 0..1, e.g. 4/255 with ``'linf'`` (where it is at most 1) and
            0.5 with ``'l2'``.
        norm: ``'linf'`` or ``'l2'``.
        steps: Steps of the attack; training takes about ``steps + 1`` times as long.
        alpha: Length of a step, ``1.5 * eps / steps`` by default.
        random_start: Start at a random point of the box; ``'l2'`` always starts at the image, see
            :func:`vitdown.models.attacks.pgd_attack`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        eps: float = 4 / 255,
        norm: str = 'linf',
        steps: int = 10,
        alpha: float | None = None,
        random_start: bool = True,
    ) -> None:
        if norm not in ('linf', 'l2'):
            raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}.")
        _check_steps(steps)
        if not 0 <= eps <= (1 if norm == 'linf' else math.inf) or not math.isfinite(eps):
            raise ValueError(
                f'eps must be a radius in pixel values of 0..1, such as 4 / 255, got {eps}.'
            )
        if alpha is not None and not 0 < alpha < math.inf:
            raise ValueError(f'alpha must be positive, got {alpha}.')
        self.options: dict[str, Any] = dict(
            eps=eps, norm=norm, steps=steps, alpha=alpha, random_start=random_start
        )

    def attack(self, model: nn.Module, pixels: Tensor, data_samples: Sequence) -> Tensor:
        with evaluation_mode(model):
            return pgd_attack(
                lambda images: _loss(model, images, data_samples), pixels, **self.options
            )


@HOOKS.register_module()
class DeconvolutionTrainingHook(AttackHook):
    """Adaptive defence against class-wise filters: training on adversarially deconvolved images.

    Every batch gets fresh class-wise transposed convolutions that climb the loss for some steps
    (deconvolution-based adversarial training, DAT). The model stays in training mode, so batch
    norms see the attack's images too; only for a class with a single image in the batch, which has
    no statistics of its own, it is in evaluation mode. Needs hard labels: no Mixup, no CutMix.

    Args:
        kernel_size: Odd side of the kernels; 3, 5 or 7 in the paper.
        steps: Steps of the attack.
        eta: Factor of the gradient.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, kernel_size: int = 7, steps: int = 10, eta: float = 0.1) -> None:
        check_filter_options(kernel_size, None)
        _check_steps(steps)
        if not 0 < eta < math.inf:
            raise ValueError(f'eta must be positive, got {eta}.')
        self.options: dict[str, Any] = dict(kernel_size=kernel_size, steps=steps, eta=eta)

    def attack(self, model: nn.Module, pixels: Tensor, data_samples: Sequence) -> Tensor:
        if any('gt_label' not in sample or 'gt_score' in sample for sample in data_samples):
            raise ValueError(
                'DeconvolutionTrainingHook needs one class an image (gt_label); take Mixup and '
                'CutMix out of the batch augments.'
            )
        labels = torch.cat([sample.gt_label for sample in data_samples])

        def loss(images: Tensor, index: Tensor) -> Tensor:
            with evaluation_mode(model) if len(index) == 1 else nullcontext():
                return _loss(model, images, [data_samples[i] for i in index.tolist()])

        return deconvolution_attack(loss, pixels, labels, **self.options)[0]
