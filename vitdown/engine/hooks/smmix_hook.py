from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real

import numpy as np
import torch
from mmengine.dist import broadcast_object_list
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitdown.models.distillation import DistilledClassifier, Tap, batch_target, find_module
from vitdown.models.identifiers import ReIdentifier
from vitdown.models.mixing import (
    AttentionProbe,
    Mix,
    PatchRecorder,
    draw_mix,
    flip_partner,
    masked_token_means,
    mix_images,
    paste_regions,
    pick_regions,
    region_mask,
    smmix_losses,
    smooth_onehot,
    token_geometry,
)
from vitdown.models.option_checks import check_flags, check_integers, check_numbers
from vitdown.registry import HOOKS

from .attached_module import ModuleHook, check_counts_epochs, is_training_run, unwrap
from .distillation_hook import bind_call


class TokenHead(BaseModule):
    """Linear classifier of the mean tokens of a region.

    Args:
        in_channels (int): Width of the tokens.
        num_classes (int): Number of classes.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)

    def init_weights(self) -> None:
        trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(..., K)`` of means ``(..., C)``."""
        return self.fc(x)


def _is_range(ratio: object) -> bool:
    """Whether these are two numbers in (0, 1), the smaller one first."""
    return (
        isinstance(ratio, Sequence)
        and len(ratio) == 2
        and all(isinstance(side, Real) for side in ratio)
        and 0 < ratio[0] <= ratio[1] < 1
    )


@dataclass
class _Step:
    """What the forward pass of one batch has to remember."""

    mix: Mix
    partner: Tensor | None = None
    target: Tensor | None = None
    masks: Tensor | None = None
    clean_logits: Tensor | None = None
    clean_losses: dict[str, Tensor] = field(default_factory=dict)
    recorder: PatchRecorder | None = None


@HOOKS.register_module()
class SMMixHook(ModuleHook):
    """Train with SMMix (ICCV 2023, arXiv 2212.12977), a CutMix for Vision Transformers.

    Half of the batches are mixed where the model itself looks: a pass over the clean images tells
    each image's most attended region, which is pasted over its partner's least attended one. The
    label is mixed by area; the mean tokens of the two parts are classified by their own labels
    (``loss_fine``), and the prediction for the mixed image is drawn to the mix of those for the
    clean ones (``loss_con``). The other batches get Mixup.

    Works with any classifier of mmpretrain and with ``ReIdentifier`` on a plain ViT, CaiT or PVT,
    and with a ``DistilledClassifier`` of one; the config stays as it is. The images' labels become
    scores, so that other hooks see the mixed images with their mixed labels. What is drawn follows
    from seed and iteration: the same on all processes and after resuming. The classifier of the
    parts is no part of checkpoints' models.

    Args:
        switch_prob (float): Share of the batches with regions; the rest gets Mixup. Defaults
            to 0.5.
        mixup_alpha (float): Of Mixup's beta distribution. Defaults to 0.8.
        region_ratio (tuple[float, float]): Smallest and largest side of a region, as shares of the
            image's. Defaults to (0.25, 0.75).
        label_smooth (float): Smoothing of the labels. Defaults to 0.1.
        fine_weight (float): Weight of ``loss_fine``. Defaults to 1.0.
        consistency_weight (float): Weight of ``loss_con``. Defaults to 1.0.
        attention (str): Attention that scores a patch: ``'patch_mean'``, that of all patches, or
            ``'cls'``, that of the class token. Defaults to ``'patch_mean'``.
        share_token_head (bool): Classify the parts by the model's own classifier (of two, that of
            the class token). Defaults to False.
        probe_amp (bool): Mixed precision in the clean pass too, where training has it. Defaults to
            True.
        pairing (str): ``'flip'`` pairs the first image with the last and so on, ``'random'`` by a
            random permutation. Defaults to ``'flip'``.
        metric_losses (str): What becomes of the metric losses of a ``ReIdentifier``, which mixed
            images have no labels for: ``'skip'``, or ``'clean'`` for those of the clean images, at
            the price of one more pass with gradients. Defaults to ``'skip'``.
        stop_epoch (int, optional): First epoch without mixing, counted from 0. A classifier's
            labels stay smoothed; a ``ReIdentifier`` gets its identities and so all of its losses
            again.
        seed (int, optional): Defaults to the run's.

    Attributes:
        draw (Callable): :func:`draw_mix` with the options; called with what draws.
        iteration (int): Of the training.
    """

    def __init__(
        self,
        switch_prob: float = 0.5,
        mixup_alpha: float = 0.8,
        region_ratio: tuple[float, float] = (0.25, 0.75),
        label_smooth: float = 0.1,
        fine_weight: float = 1.0,
        consistency_weight: float = 1.0,
        attention: str = 'patch_mean',
        share_token_head: bool = False,
        probe_amp: bool = True,
        pairing: str = 'flip',
        metric_losses: str = 'skip',
        stop_epoch: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_numbers(high=1, switch_prob=switch_prob, label_smooth=label_smooth)
        check_numbers(
            mixup_alpha=mixup_alpha, fine_weight=fine_weight, consistency_weight=consistency_weight
        )
        check_flags(share_token_head=share_token_head, probe_amp=probe_amp)
        for name, value in dict(stop_epoch=stop_epoch, seed=seed).items():
            if value is not None:
                check_integers(name, value, 0)
        if mixup_alpha == 0:
            raise ValueError(f'mixup_alpha must be positive, got {mixup_alpha}')
        if not _is_range(region_ratio):
            raise ValueError(
                'region_ratio must be two numbers in (0, 1), the smaller first, got '
                f'{region_ratio!r}'
            )
        if label_smooth == 1:
            raise ValueError('label_smooth=1 leaves nothing of the labels; choose a smaller one')
        if pairing not in ('flip', 'random'):
            raise ValueError(f"pairing must be 'flip' or 'random', got {pairing!r}")
        if metric_losses not in ('skip', 'clean'):
            raise ValueError(f"metric_losses must be 'skip' or 'clean', got {metric_losses!r}")
        self.draw = partial(
            draw_mix,
            switch_prob=switch_prob,
            mixup_alpha=mixup_alpha,
            region_ratio=(region_ratio[0], region_ratio[1]),
        )
        self.label_smooth = label_smooth
        self.weights = dict(loss_fine=fine_weight, loss_con=consistency_weight)
        self.attention = attention
        self.share_token_head = share_token_head
        self.probe_amp = probe_amp
        self.pairing = pairing
        self.metric_losses = metric_losses
        self.stop_epoch = stop_epoch
        self.seed = seed
        self.iteration = 0
        self._mixing = True
        self._step: _Step | None = None
        self._handles: list[RemovableHandle] = []

    def before_run(self, runner: Runner) -> None:
        """Check that the model can be trained so, and add the classifier of the parts to it.

        Raises:
            ValueError: If the backbone does not tell its attention, or the model mixes images or
                smooths labels itself.
        """
        if not is_training_run(runner):
            return
        self.leave_failures(runner)
        model = unwrap(runner.model)
        token_head = self.prepare(model)
        if token_head is not None:
            self.attach(runner, 'smmix_token_head', token_head, self._classifier)

    def prepare(self, model: nn.Module) -> TokenHead | None:
        """Get ready for a model, without a runner; what it returns is to be trained too."""
        if isinstance(model, DistilledClassifier):
            model = model.student
        self._probe = AttentionProbe(model, self.attention)
        self._check_preprocessor(model)
        self._check_losses(model)
        logits = Tap.parse('auto', 'student_logits', model)
        self._taps = dict(logits=logits)
        self._unchecked = True
        self._classifier = find_module(model, logits.paths[0])
        self._num_classes = self._classifier.out_features
        self._token_head = self._classifier
        if self.share_token_head:
            return None
        self._token_head = TokenHead(model.backbone.embed_dims, self._num_classes)
        return self._token_head

    @staticmethod
    def _check_preprocessor(model: nn.Module) -> None:
        if getattr(model.data_preprocessor, 'batch_augments', None) is not None:
            raise ValueError(
                'SMMixHook mixes the images itself; remove batch_augments (Mixup, CutMix ...) from '
                'data_preprocessor or model.train_cfg.augments'
            )

    def _check_losses(self, model: nn.Module) -> None:
        head = model.head
        loss = getattr(head, 'loss_module', None) or getattr(head, 'loss_id', None)
        if self.label_smooth and getattr(loss, 'label_smooth_val', 0):
            raise ValueError(
                'Labels would be smoothed twice, by SMMixHook and by the LabelSmoothLoss of the '
                'head; use CrossEntropyLoss there, or label_smooth=0 in SMMixHook'
            )
        has_metric_losses = isinstance(model, ReIdentifier) and len(head.loss_metric) > 0
        if self.metric_losses == 'clean' and not has_metric_losses:
            raise ValueError(
                "metric_losses='clean' is for a ReIdentifier whose head has loss_metric; leave it "
                'out'
            )

    def before_train(self, runner: Runner) -> None:
        if self.stop_epoch is not None:
            check_counts_epochs(runner, 'stop_epoch of SMMixHook')
        if self.seed is None:
            seed = [runner.seed]
            broadcast_object_list(seed)
            self.seed = seed[0]
        self.watch(unwrap(runner.model))

    def watch(self, model: nn.Module) -> None:
        """Mix from now on whenever the model computes its losses in training."""
        self._handles = [
            # First of all: the clean pass is no part of what other hooks watch.
            model.register_forward_pre_hook(self._start, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._finish, with_kwargs=True, always_call=True),
            # First of all, and on the model that a wrapper distills: they are its own losses.
            self._probe.model.register_forward_hook(self._add_clean_losses, prepend=True),
        ]

    def before_train_epoch(self, runner: Runner) -> None:
        self._mixing = self.stop_epoch is None or runner.epoch < self.stop_epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self.iteration = runner.iter

    def after_train(self, runner: Runner) -> None:
        super().after_train(runner)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._step is not None and self._step.recorder is not None:
            self._step.recorder.__exit__()  # interrupted within a step
        self._step = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        super().before_save_checkpoint(runner, checkpoint)
        checkpoint['smmix'] = dict(seed=self.seed)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        super().after_load_checkpoint(runner, checkpoint)
        if runner._resume and 'smmix' in checkpoint:
            self.seed = checkpoint['smmix']['seed']

    def _start(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        call = bind_call(model, args, kwargs)
        if call.get('mode') != 'loss' or not model.training:
            return None
        inputs, samples = call['inputs'], call['data_samples']
        if any('gt_score' in sample for sample in samples or ()):
            raise ValueError('SMMixHook needs labels, but the images come with gt_score: mixed?')
        labels = batch_target(samples)
        self._step = _Step(Mix(1.0))
        if not self._mixing and isinstance(self._probe.model, ReIdentifier):
            return None
        target = smooth_onehot(labels, self._num_classes, self.label_smooth)
        mixed, scores = inputs, target
        if self._mixing:
            mixed, scores = self._mix(inputs, samples, target)
        for sample, score in zip(samples, scores):
            sample.set_gt_score(score)
        self._step.recorder = PatchRecorder(self._probe, self._taps, self._unchecked)
        self._step.recorder.__enter__()
        return (), {**call, 'inputs': mixed}

    def _mix(self, inputs: Tensor, samples: list, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and their scores."""
        step = self._step
        rng = np.random.default_rng([self.seed, self.iteration])
        geometry = attention = None

        def look() -> tuple[int, int]:
            nonlocal geometry, attention
            step.clean_logits, attention = self._probe(inputs, samples, self.probe_amp)
            geometry = token_geometry(
                self._probe.model.backbone, inputs.shape[-2:], attention.shape[1]
            )
            return geometry.grid

        step.mix = self.draw(look, rng.random, rng.choice, rng.beta)
        step.target = target
        step.partner = flip_partner(len(inputs), inputs.device)
        if self.pairing == 'random':
            step.partner = torch.from_numpy(rng.permutation(len(inputs))).to(inputs.device)
        if self.metric_losses == 'clean':
            step.clean_losses = self._probe.model.metric_losses(inputs, samples)
        lam = step.mix.lam
        if step.mix.size is None:
            mixed = mix_images(inputs, step.partner, lam)
        else:
            regions = pick_regions(attention, geometry.grid, step.mix.size)
            mixed = paste_regions(inputs, regions, step.partner, geometry)
            pasted = region_mask(regions.target, geometry.grid, step.mix.size)
            step.masks = torch.stack((~pasted, pasted), dim=1)
        return mixed, lam * target + (1 - lam) * target[step.partner]

    def _add_clean_losses(
        self, model: nn.Module, args: tuple, losses: object
    ) -> dict[str, Tensor] | None:
        if self._step is None or not isinstance(losses, dict):
            return None
        return {**losses, **self._step.clean_losses}

    def _finish(
        self, model: nn.Module, args: tuple, kwargs: dict, losses: dict[str, Tensor] | None
    ) -> dict[str, Tensor] | None:
        if bind_call(model, args, kwargs).get('mode') != 'loss' or self._step is None:
            return None
        step, self._step = self._step, None
        if step.recorder is not None:
            step.recorder.__exit__()
        if losses is None:
            return None
        if self._unchecked and step.recorder is not None:
            step.recorder.check_prediction(
                'logits', 'SMMixHook needs a head that predicts what one linear layer gives'
            )
            self._unchecked = False
        if step.masks is None:
            # A gradient of 0, so that every step has the same parameters.
            return {
                **losses,
                'loss_fine': sum(0.0 * p.sum() for p in self._token_head.parameters()),
            }
        means = masked_token_means(step.recorder.patches(len(step.masks)), step.masks)
        added = smmix_losses(
            step.recorder['logits'],
            self._token_head(means),
            step.clean_logits,
            step.target,
            step.partner,
            step.mix.lam,
        )
        return {**losses, **{name: self.weights[name] * v for name, v in added.items()}}
