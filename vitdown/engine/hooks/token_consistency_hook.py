import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitdown.models.distillation import batch_target, find_classifier, find_module
from vitdown.models.losses.token_consistency import TokenConsistencyLoss
from vitdown.models.option_checks import TOKEN_FUSION_HINT, check_numbers
from vitdown.models.token_fusion.base import check_r
from vitdown.registry import HOOKS


@HOOKS.register_module()
class TokenConsistencyHook(Hook):
    """Train with token fusion as MCTF does (arXiv 2403.10030, Sec. 3.4).

    In every iteration the images go through the model a second time with fewer tokens fused. That
    "teacher" has the same weights and the same losses; the class token of the first pass, the
    "student", is drawn to the teacher's, for the images that the student's classifier gets right
    with some confidence. How many tokens the teacher fuses is drawn for each iteration, the same
    number on all processes and after resuming. Batch norms keep the student's statistics only.

    Works with any classifier of mmpretrain and with ``ReIdentifier``, on a backbone of vitdown
    with ``token_fusion``, final norm and a class token that the head sees. The losses that it adds
    are ``loss_consistency`` and the model's own with the prefix ``teacher_``.

    Args:
        r_max (int | float): The teacher fuses 0, 1 ... ``r_max - 1`` tokens in each active layer,
            or below 1 a fraction of 0, 0.01 ... ``r_max - 0.01``. 0 for none at all. Never more
            than the student with inputs of the backbone's ``img_size``. Defaults to 8.
        loss_weight (float): Weight of the consistency. Defaults to 3.
        teacher_loss_weight (float): Weight of the teacher's own losses. Defaults to 1.
        conf_thr (float, optional): See :class:`TokenConsistencyLoss`. Defaults to 0.4.
    """

    def __init__(
        self,
        r_max: int | float = 8,
        loss_weight: float = 3.0,
        teacher_loss_weight: float = 1.0,
        conf_thr: float | None = 0.4,
    ) -> None:
        check_r(r_max, 'r_max')
        if 0 < r_max < 0.01:
            raise ValueError(f'r_max below 1 counts in steps of 0.01, got {r_max}; 0 is for none')
        check_numbers(teacher_loss_weight=teacher_loss_weight)
        self.r_max = r_max
        self.teacher_loss_weight = teacher_loss_weight
        self.consistency = TokenConsistencyLoss(loss_weight, conf_thr)
        self._handles: list = []
        self._captured: dict[str, Tensor] = {}
        self._r: int | float = 0

    def before_train(self, runner: Runner) -> None:
        """Watch the model's forward passes.

        Raises:
            ValueError: If the model has no token fusion, class token, final norm or classifier, if
                its head averages the patches, or if the teacher may fuse more than the student.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        backbone = getattr(model, 'backbone', None)
        if backbone is None:
            raise ValueError(
                'TokenConsistencyHook trains a classifier or ReIdentifier itself, with a backbone '
                f'of its own; {type(model).__name__} has none'
            )
        if getattr(backbone, 'token_fusion', None) is None:
            raise ValueError(
                f'TokenConsistencyHook needs token fusion, which {type(backbone).__name__} is '
                f'without; {TOKEN_FUSION_HINT}'
            )
        if backbone.cls_token is None or not backbone.final_norm:
            raise ValueError(
                'TokenConsistencyHook needs a backbone with class token and final norm'
            )
        if backbone.out_type in ('featmap', 'avg_featmap'):
            raise ValueError(
                'TokenConsistencyHook compares class tokens, of which a head behind '
                f"out_type={backbone.out_type!r} sees nothing; use out_type='cls_token'"
            )
        check_teacher_fuses_less(backbone, self.r_max)
        seed = [runner.seed]
        broadcast_object_list(seed)
        self._seed = seed[0]
        self._handles = [
            model.register_forward_hook(self._add_losses, with_kwargs=True),
            backbone.ln1.register_forward_hook(self._capture('tokens')),
        ]
        if self.consistency.conf_thr is not None:
            classifier = _linear_classifier(model)
            self._handles.append(classifier.register_forward_hook(self._capture('logits')))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._captured.clear()
        self._r = draw_r(self.r_max, self._seed, runner.iter)

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._captured.clear()

    def _capture(self, name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def keep_first(module: nn.Module, args: tuple, output: Tensor) -> None:
            self._captured.setdefault(name, output)

        return keep_first

    def _add_losses(
        self, model: nn.Module, args: tuple, kwargs: dict, losses: dict[str, Tensor]
    ) -> dict[str, Tensor] | None:
        call = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        student = dict(self._captured)
        self._captured.clear()
        if call.get('mode') != 'loss' or not model.training:
            return None
        with model.backbone.override_fusion(self._r), frozen_statistics(model):
            # Not model(...), which would come back here.
            teacher_losses = model.forward(*args, **kwargs)
        teacher = dict(self._captured)
        self._captured.clear()
        batch = len(call['data_samples'])
        consistency = self.consistency(
            student['tokens'][:batch, 0],
            teacher['tokens'][:batch, 0],
            student.get('logits'),
            batch_target(call['data_samples']),
        )
        weighted = {
            f'teacher_{name}': self.teacher_loss_weight * value
            for name, value in teacher_losses.items()
            if 'loss' in name
        }
        return {**losses, **weighted, 'loss_consistency': consistency}


def check_teacher_fuses_less(backbone: nn.Module, r_max: int | float) -> None:
    """Check that no number drawn for the teacher leaves fewer tokens than the backbone's own.

    For inputs of the backbone's ``img_size``, in training.

    Raises:
        ValueError: If one does after some layer, or if the backbone fuses nothing.
    """
    # The model itself may be in evaluation mode still, which has an r of its own.
    policy = copy.copy(backbone.token_fusion).train()
    num_tokens = math.prod(backbone.patch_resolution) + backbone.num_extra_tokens
    student = policy.schedule(num_tokens)
    if student[-1] == num_tokens:
        raise ValueError(
            f'TokenConsistencyHook compares passes that fuse, but {policy} fuses none of the '
            f"{num_tokens} tokens; set token_fusion's r and layers, or leave the hook out"
        )
    teacher = policy.schedule(num_tokens, teacher_choices(r_max)[-1])
    if any(t < s for t, s in zip(teacher, student, strict=True)):
        raise ValueError(
            f'r_max={r_max} lets the teacher leave {teacher} tokens after the layers, fewer than '
            f"the student's {student}; lower r_max below the r of {policy}"
        )


def _linear_classifier(model: nn.Module) -> nn.Module:
    try:
        return find_module(model, find_classifier(model))
    except ValueError as error:
        raise ValueError(
            f'{type(model).__name__} has no head with a linear classifier, which conf_thr needs; '
            'set conf_thr=None, with which every image counts'
        ) from error


def teacher_choices(r_max: int | float) -> list[int | float]:
    """What the teacher may fuse, ascending; see ``r_max`` of :class:`TokenConsistencyHook`."""
    if r_max >= 1:
        return list(range(int(r_max)))
    return [i / 100 for i in range(max(1, int(100 * r_max)))]


def draw_r(r_max: int | float, seed: int, iteration: int) -> int | float:
    """One of the teacher's choices, a function of seed and iteration."""
    choices = teacher_choices(r_max)
    return choices[np.random.default_rng([seed, iteration]).integers(len(choices))]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics of the batch, but do not keep them."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
