from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from vitdown.registry import MODELS

from .distiller import Distiller, build_losses
from .teacher import FrozenTeacher, build_teacher

_STUDENT = 'student.'


@MODELS.register_module()
class DistilledClassifier(BaseModel):
    """A student with its distillation losses, as one model.

    For training scripts that want all parameters when the model is built; ``NKDHook``, ``USKDHook``
    and their like do the same without changing the model's config. State dicts name the student's
    weights as the student does, followed by those of losses that have some; the teacher is in none.

    Args:
        student (dict): Config of a classifier of mmpretrain or a ``ReIdentifier``.
        distill_losses (Mapping[str, dict]): Configs of the losses by name.
        teacher (str | dict | nn.Module, optional): See :func:`build_teacher`.
        teacher_checkpoint (str, optional): See :func:`build_teacher`.
        teacher_source (str, optional): See :func:`build_teacher`.
        teacher_eval (bool): False runs the teacher in training mode, as the official code does by
            mistake. Defaults to True.
        taps (Mapping[str, str | dict], optional): See :class:`Distiller`.
        data_preprocessor (dict, optional): Defaults to the student's.
        init_cfg (dict, optional): MMEngine initialisation config.

    Attributes:
        distill (bool): False leaves the student's own losses only.
    """

    def __init__(
        self,
        student: dict,
        distill_losses: Mapping[str, dict],
        teacher: str | Mapping | nn.Module | None = None,
        teacher_checkpoint: str | None = None,
        teacher_source: str | None = None,
        teacher_eval: bool = True,
        taps: Mapping[str, str | dict] | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        network = MODELS.build(student)
        super().__init__(data_preprocessor or network.data_preprocessor, init_cfg)
        self.student = network
        if data_preprocessor:
            self.student.data_preprocessor = self.data_preprocessor
        self.distill_losses = build_losses(distill_losses)
        self.distill = True
        frozen = None
        if teacher is not None:
            model = build_teacher(teacher, teacher_checkpoint, teacher_source)
            frozen = FrozenTeacher(model, training=not teacher_eval)
        self._distiller = Distiller(self.student, self.distill_losses, frozen, taps)
        self.register_state_dict_post_hook(_strip_student)
        self.register_load_state_dict_pre_hook(_restore_student)

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher's network."""
        return self._distiller.teacher and self._distiller.teacher.model

    def _apply(
        self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any
    ) -> 'DistilledClassifier':
        if self.teacher is not None:
            self.teacher._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list:
        """The student's, with the distillation losses added in mode ``'loss'``."""
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        if not self.distill:
            losses = self.student(inputs, data_samples, mode='loss')
            zero = self._distiller.zero()
            return {**losses, 'loss_stopped': zero} if isinstance(zero, Tensor) else losses
        seen = self._distiller.record(inputs, data_samples)
        with seen:
            losses = self.student(inputs, data_samples, mode='loss')
        return self._distiller.add_to(self._distiller.weigh(losses), seen, data_samples)


def _strip_student(module: nn.Module, state_dict: dict, prefix: str, *args: Any) -> None:
    start = prefix + _STUDENT
    for key in list(state_dict):
        if key.startswith(prefix):
            # Every key is put back, so that the order stays.
            value = state_dict.pop(key)
            name = prefix + key.removeprefix(start) if key.startswith(start) else key
            state_dict[name] = value


def _restore_student(module: nn.Module, state_dict: dict, prefix: str, *args: Any) -> None:
    own = dict(module.named_children())
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name.partition('.')[0] not in own:
            state_dict[prefix + _STUDENT + name] = state_dict.pop(key)
