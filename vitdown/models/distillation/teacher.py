import copy
from collections.abc import Callable, Mapping

import torch
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmpretrain.models.backbones import DeiT3 as MMPretrainDeiT3
from torch import Tensor, nn

from vitdown.config import read_config
from vitdown.registry import MODELS

from ..pretrained import load_pretrained
from .taps import Recorder, Tap


def build_teacher(
    teacher: str | Mapping | nn.Module, checkpoint: str | None = None, source: str | None = None
) -> nn.Module:
    """Build a trained network to learn from.

    Args:
        teacher (str | dict | nn.Module): Config file (its ``model`` and ``data_preprocessor`` are
            taken; ``package::file`` for one of another package), config of a model, or a model,
            which is taken as it is.
        checkpoint (str, optional): Weights of the whole model; needed with a config.
        source (str, optional): Code base that the weights come from, see
            :mod:`vitdown.converters`.

    Raises:
        ValueError: If there is no checkpoint, or a checkpoint for a model that is there already, or
            a config asks for mmpretrain's DeiT3.
        CheckpointError: If the weights do not fit.
    """
    if isinstance(teacher, nn.Module):
        if checkpoint is not None:
            raise ValueError('teacher_checkpoint is for a teacher that is given as a config')
        return teacher
    if not checkpoint:
        raise ValueError('An untrained teacher teaches nothing; set teacher_checkpoint')
    scope, preprocessor = None, None
    if isinstance(teacher, str):
        config = get_config(teacher) if '::' in teacher else read_config(teacher)
        if 'model' not in config:
            raise ValueError(f'The teacher config {teacher} has no model')
        teacher, scope = config.model, config.get('default_scope')
        preprocessor = config.get('data_preprocessor')
    teacher = copy.deepcopy(dict(teacher))
    if preprocessor is not None:  # stands beside the model in mmpretrain's configs
        teacher.setdefault('data_preprocessor', preprocessor)
    if scope:
        teacher.setdefault('_scope_', scope)
    model = MODELS.build(teacher)
    if any(isinstance(module, MMPretrainDeiT3) for module in model.modules()):
        raise ValueError(
            "mmpretrain's DeiT3 runs ln1 before the MLP, which costs the released weights most of "
            "their accuracy; give the teacher a backbone=dict(type='vitdown.DeiT3', arch=...), "
            'which takes the same checkpoint'
        )
    load_pretrained(model, checkpoint, source, prefix=None)
    return model


def get_logits(model: nn.Module, inputs: Tensor, data_samples: list | None = None) -> Tensor:
    """Logits ``(B, C)`` of a classifier of mmpretrain or a ``ReIdentifier``, without its losses."""
    if hasattr(model, 'logits'):
        return model(inputs, data_samples, mode='logits')
    if isinstance(model, BaseModel):
        return model(inputs, mode='tensor')
    return model(inputs)


#: Name of a teacher's prediction among what losses want
PREDICTION = 'teacher_logits'


class TeacherRecorder(Recorder):
    """Has the model's prediction, too, where no tap is named as it."""

    prediction: object = None

    def __getitem__(self, name: str) -> Tensor:
        if name != PREDICTION or name in self.taps:
            return super().__getitem__(name)
        if not isinstance(self.prediction, Tensor):
            raise ValueError(
                f'{type(self.model).__name__} predicts no tensor of logits; name the module that '
                f'gives them, or several, in taps=dict({PREDICTION}=...)'
            )
        return self.prediction


class FrozenTeacher:
    """A network to learn from: no gradients, in evaluation mode, part of no other module.

    Being no module, it is in no state dict, optimizer, averaged copy or gradient bucket.

    Args:
        model (nn.Module): The network.
        training (bool): Run it in training mode (batch statistics, drop path), as the official
            code does by mistake. Defaults to False.
    """

    def __init__(self, model: nn.Module, training: bool = False) -> None:
        self.model = model.requires_grad_(False).train(training)
        self._convert: Callable[[Tensor], Tensor] | None = None

    def __deepcopy__(self, memo: dict) -> 'FrozenTeacher':
        return self

    def follow(self, student: nn.Module) -> None:
        """Expect inputs that the student's data preprocessor has normalised."""
        self._convert = input_conversion(student, self.model)

    @torch.no_grad()
    def record(
        self, taps: Mapping[str, Tap], inputs: Tensor, data_samples: list | None = None
    ) -> TeacherRecorder:
        """Run on the student's normalised inputs, and record, besides taps, the prediction."""
        if self._convert is not None:
            inputs = self._convert(inputs)
        recorder = TeacherRecorder(self.model, taps)
        with recorder:
            recorder.prediction = get_logits(self.model, inputs, data_samples)
        return recorder


def input_conversion(student: nn.Module, teacher: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What turns images normalised for one model into images normalised for another.

    None if both normalise alike, or one of them has no preprocessor that does.

    Raises:
        ValueError: If the student's images are normalised, and the teacher doesn't say how its are.
    """
    preprocessors = [getattr(model, 'data_preprocessor', None) for model in (student, teacher)]
    if not all(isinstance(getattr(p, 'to_rgb', None), bool) for p in preprocessors):
        return None
    if [hasattr(p, 'mean') for p in preprocessors] == [True, False]:
        raise ValueError(
            'The teacher does not say how its images are normalised, the student does: give the '
            'teacher a data_preprocessor with mean, std and to_rgb (mean=[0, 0, 0] and '
            'std=[1, 1, 1] for grey levels as they are)'
        )
    (mean_s, std_s, rgb_s), (mean_t, std_t, rgb_t) = map(_normalisation, preprocessors)
    flip = rgb_s != rgb_t
    if flip:
        mean_s, std_s = mean_s.flip(0), std_s.flip(0)
    scale, shift = std_s / std_t, (mean_s - mean_t) / std_t
    if not flip and torch.allclose(scale, torch.ones(3, 1, 1)) and shift.abs().max() < 1e-6:
        return None

    def convert(inputs: Tensor) -> Tensor:
        if flip:
            inputs = inputs.flip(1)
        return inputs * scale.to(inputs) + shift.to(inputs)

    return convert


def _normalisation(preprocessor: nn.Module) -> tuple[Tensor, Tensor, bool]:
    mean = getattr(preprocessor, 'mean', torch.zeros(1)).detach().float().cpu()
    std = getattr(preprocessor, 'std', torch.ones(1)).detach().float().cpu()
    return (
        mean.reshape(-1, 1, 1).expand(3, 1, 1),
        std.reshape(-1, 1, 1).expand(3, 1, 1),
        preprocessor.to_rgb,
    )
