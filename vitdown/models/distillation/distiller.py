import inspect
import math
from collections.abc import Mapping

import torch
from mmengine.model import ModuleDict
from torch import Tensor, nn

from vitdown.registry import MODELS

from .taps import Recorder, Tap
from .teacher import PREDICTION, FrozenTeacher


def batch_target(data_samples: list | None) -> Tensor:
    """Labels ``(B,)`` of data samples, or scores ``(B, C)`` where images were mixed.

    Raises:
        ValueError: If there are no samples, or they have no label, or several each.
    """
    if not data_samples:
        raise ValueError('Training on labels needs data_samples')
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    labels = [sample.get('gt_label') for sample in data_samples]
    if any(label is None or label.numel() != 1 for label in labels):
        raise ValueError('Every sample needs one gt_label, or a gt_score')
    return torch.cat([label.reshape(1) for label in labels])


def check_loss_configs(configs: Mapping[str, dict]) -> None:
    """Check configs of distillation losses by the names under which they are logged.

    Raises:
        ValueError: If there is none, or one is no config, or a name does not contain ``loss``, so
            that MMEngine would not add it to the total.
    """
    if not isinstance(configs, Mapping) or not configs:
        raise ValueError(
            'There is no distillation loss; the losses must be a dict such as '
            f"dict(loss_kd=dict(type='KDLoss')), got {configs!r}"
        )
    for name, config in configs.items():
        if 'loss' not in name:
            raise ValueError(
                f"The name of a loss must contain 'loss' to be part of the total: {name!r}"
            )
        if not isinstance(config, Mapping):
            raise ValueError(f"{name} must be a dict such as dict(type='KDLoss'), got {config!r}")


def build_losses(configs: Mapping[str, dict]) -> ModuleDict:
    """Build distillation losses by the names under which they are logged.

    Types without a scope are vitdown's, whatever the default scope.

    Raises:
        ValueError: See :func:`check_loss_configs`.
    """
    check_loss_configs(configs)
    return ModuleDict(
        {name: MODELS.build({'_scope_': 'vitdown', **config}) for name, config in configs.items()}
    )


class Distiller:
    """Losses between what a student and, perhaps, a teacher compute for the same images.

    Every loss says by the names of its arguments what it wants, see :class:`DistillationLoss`.

    Args:
        student (nn.Module): The network that learns.
        losses (nn.ModuleDict): Losses by name.
        teacher (FrozenTeacher, optional): Needed where a loss asks for it.
        taps (Mapping[str, str | dict], optional): Where to find what the losses want, see
            :meth:`Tap.parse`, e.g. ``dict(student_mid='backbone.layer3')``; ``'auto'`` where
            nothing is said. Without one ``teacher_logits`` are what the teacher predicts, and the
            first batch tells whether ``student_logits`` are what the student predicts.

    Raises:
        ValueError: If a tap fits no loss or no module, or there is no teacher to tap.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: nn.ModuleDict,
        teacher: FrozenTeacher | None = None,
        taps: Mapping[str, str | dict] | None = None,
    ) -> None:
        self.student = student
        self.losses = losses
        self.teacher = teacher
        taps = dict(taps or {})
        self._wanted = {name: _wanted_arguments(name, loss) for name, loss in losses.items()}
        names = sorted({arg for wanted in self._wanted.values() for arg in wanted} - {'target'})
        unknown = set(taps) - set(names)
        if unknown:
            raise ValueError(
                f'No loss takes the tap(s) {", ".join(sorted(unknown))}; the losses take '
                f'{", ".join(names)}'
            )
        if teacher is None and any(name.startswith('teacher_') for name in names):
            raise ValueError(f'The losses take {", ".join(names)}, but there is no teacher')
        models = dict(student=student, teacher=teacher.model if teacher else None)
        automatic = {name for name in names if taps.get(name, 'auto') == 'auto'}
        self._names = names
        self._unchecked = 'student_logits' in automatic
        self._taps: dict[str, dict[str, Tap]] = dict(student={}, teacher={})
        for name in names:
            if name == PREDICTION and name in automatic:
                continue
            side = name.partition('_')[0]
            self._taps[side][name] = Tap.parse(taps.get(name, 'auto'), name, models[side])
        if teacher is not None:
            teacher.follow(student)

    @property
    def head_loss_weight(self) -> float:
        """Factor on the student's own losses while it is distilled."""
        return math.prod(loss.head_loss_weight for loss in self.losses.values())

    def record(self, inputs: Tensor, data_samples: list | None = None) -> 'Observation':
        """Run the teacher, and give the context in which the student is to run.

        The teacher comes first: what its layers need is freed before the student's graph grows.

        Args:
            inputs (Tensor): The student's images ``(B, 3, H, W)``, augmented and normalised; the
                teacher sees the same.
            data_samples (list, optional): Cameras, for models that need them.
        """
        teacher = None
        if self.teacher is not None and any(name.startswith('teacher_') for name in self._names):
            teacher = self.teacher.record(self._taps['teacher'], inputs, data_samples)
        return Observation(
            self.student, self._taps['student'], len(inputs), teacher, self._unchecked
        )

    def compute(self, seen: 'Observation', data_samples: list | None) -> dict[str, Tensor]:
        """Distillation losses by name.

        Args:
            seen (Observation): From :meth:`record`, after the student has run.
            data_samples (list, optional): Labels; scores where images were mixed.

        Raises:
            ValueError: If the taps do not give what the losses want.
        """
        if self._unchecked:
            seen.check_prediction(
                'student_logits',
                'name the module that gives the logits, or several, in '
                'taps=dict(student_logits=...)',
            )
            self._unchecked = False
        values = {name: seen[name] for name in self._names}
        if any('target' in wanted for wanted in self._wanted.values()):
            values['target'] = batch_target(data_samples)
        return {
            name: loss(**{arg: values[arg] for arg in self._wanted[name]})
            for name, loss in self.losses.items()
        }

    def weigh(self, head_losses: dict[str, Tensor], factor: float = 1) -> dict[str, Tensor]:
        """The student's own losses with their weight while it is distilled.

        Args:
            head_losses (dict[str, Tensor]): Losses by name, and other values.
            factor (float): That of the distillation, see :meth:`add_to`: the smaller it is, the
                less is taken from the student's own losses.
        """
        weight = 1 - factor * (1 - self.head_loss_weight)
        if weight == 1:
            return head_losses
        return {
            name: weight * value if 'loss' in name else value for name, value in head_losses.items()
        }

    def add_to(
        self,
        losses: dict[str, Tensor],
        seen: 'Observation',
        data_samples: list | None,
        factor: float = 1,
    ) -> dict[str, Tensor]:
        """Losses and, times a factor, those of the distillation.

        Raises:
            ValueError: If both have a loss of one name.
        """
        own = self.compute(seen, data_samples)
        twice = set(own) & set(losses)
        if twice:
            raise ValueError(
                f'There is a loss {min(twice)!r} already; give this one another name, in '
                f"DistillationHook(losses=dict({min(twice)}_2=dict(type='...')))"
            )
        return {**losses, **{name: factor * value for name, value in own.items()}}

    def zero(self) -> Tensor | float:
        """0 with a gradient (of 0) for each parameter of the losses, for steps without them."""
        return sum(0.0 * p.sum() for p in self.losses.parameters())


class Observation(Recorder):
    """What the student computes within the ``with`` block, and what the teacher has computed.

    Args:
        student (nn.Module): The student.
        taps (Mapping[str, Tap]): What to record of it.
        batch (int): Number of images; further rows belong to a second stream (DCAL's).
        teacher (Recorder, optional): What was recorded of the teacher.
        watch_head (bool): See :class:`Recorder`.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: Mapping[str, Tap],
        batch: int,
        teacher: Recorder | None = None,
        watch_head: bool = False,
    ) -> None:
        super().__init__(student, taps, watch_head)
        self._batch = batch
        self._teacher = teacher

    def __getitem__(self, name: str) -> Tensor:
        if self._teacher is None or name in self.taps:
            value = super().__getitem__(name)
        else:
            value = self._teacher[name]
        return value[: self._batch]


def _wanted_arguments(name: str, loss: nn.Module) -> list[str]:
    parameters = inspect.signature(loss.forward).parameters.values()
    wanted = [p.name for p in parameters if p.default is p.empty]
    wrong = [
        arg for arg in wanted if arg != 'target' and not arg.startswith(('student_', 'teacher_'))
    ]
    if wrong or not wanted:
        raise ValueError(
            f'{name}: {type(loss).__name__} is no distillation loss, whose arguments are named '
            f'student_..., teacher_... and target; it takes {", ".join(wrong) or "nothing"}'
        )
    return wanted
