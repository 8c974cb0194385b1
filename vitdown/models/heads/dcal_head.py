from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import pair_indices
from .bnneck_head import BNNeck, ReIDHead
from .glca_branch import GLCABranch

#: Names of the branches: self-attention, global-local and pair-wise cross-attention
BRANCHES = ('sa', 'glca', 'pwca')


@dataclass(frozen=True)
class PWCASettings:
    """How images meet partners in training.

    Args:
        enable (bool): Whether they do at all.
        pairing (str): See :func:`pair_indices`.
        partner_stream (str): See :func:`two_stream_attention`.

    Raises:
        ValueError: If a value is unknown.
    """

    enable: bool = True
    pairing: str = 'random'
    partner_stream: str = 'pwca'

    def __post_init__(self) -> None:
        for name, known in (
            ('enable', (True, False)),
            ('pairing', ('random', 'inter', 'intra')),
            ('partner_stream', ('pwca', 'sa')),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f'pwca.{name} must be one of {known}, got {getattr(self, name)!r}')


class PlainNeck(BaseModule):
    """Classifier without batch norm, in the shape of :class:`BNNeck`.

    Args:
        in_channels (int): Width D of the feature.
        num_classes (int): Number of classes.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(in_channels, num_classes)

    def init_weights(self) -> None:
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The feature itself."""
        return x


class BatchStatisticsNeck:
    """A BNNeck as a second branch uses it: same weights, statistics of its own batch.

    No module of its own (nothing of it is saved), and the running statistics stay as they are.
    """

    def __init__(self, neck: BNNeck) -> None:
        self.bn = neck.bn
        self.classifier = neck.classifier

    def __call__(self, x: Tensor) -> Tensor:
        bn = self.bn
        return F.batch_norm(x, None, None, bn.weight, bn.bias, training=True, eps=bn.eps)


@MODELS.register_module()
class DCALHead(ReIDHead):
    """Dual cross-attention learning beside a plain ViT, arXiv 2205.02151.

    Three branches learn together. SA is the backbone's class token. GLCA (:class:`GLCABranch`) has
    a block, norm, neck and classifier of its own. PWCA, in training only, is the class token of a
    second stream through the backbone in which every image attends to another one too; it uses
    SA's neck and classifier and has no parameters. Learnt weights balance their losses. Logged are
    each branch's losses, accuracy and weight.

    Args:
        num_classes (int): Number of training identities, or of classes.
        in_channels (int): Width D of the tokens.
        task (str): ``'reid'``: BNNeck, identity and metric losses, the test feature concatenates
            SA's and GLCA's. ``'fgvc'``: linear classifiers, cross-entropy, the test score is the
            sum of SA's and GLCA's probabilities.
        num_heads (int, optional): Heads of the GLCA block. Defaults to the backbone's.
        feedforward_channels (int, optional): MLP width of the GLCA block. Defaults to the
            backbone's.
        glca (dict, optional): Other arguments of :class:`GLCABranch`, which is made by
            :meth:`attach`. None for no such branch.
        pwca (dict, optional): Arguments of :class:`PWCASettings`. None for no such branch.
        loss_weighting (dict, optional): Config of the losses' weights, without ``tasks``. Defaults
            to :class:`UncertaintyWeightedLoss`. None for the plain sum.
        infer_branch (str): Branches at test time, ``'both'``, ``'sa'`` or ``'glca'``.
        normalize_parts (bool): L2-normalise each branch's test feature before they are
            concatenated. Defaults to False.
        **kwargs: Other arguments of :class:`ReIDHead`. The paper's triplet loss is
            ``loss_metric``, the default for ``'reid'``; there is none for ``'fgvc'``.

    Raises:
        ValueError: If a setting is unknown, or means nothing for the task.
    """

    needs_tokens = True

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        task: str = 'reid',
        num_heads: int | None = None,
        feedforward_channels: int | None = None,
        glca: dict | None = dict(),
        pwca: dict | None = dict(),
        loss_weighting: dict | None = dict(type='vitdown.UncertaintyWeightedLoss'),
        infer_branch: str = 'both',
        normalize_parts: bool = False,
        **kwargs: Any,
    ) -> None:
        if task not in ('reid', 'fgvc'):
            raise ValueError(f"task must be 'reid' or 'fgvc', got {task!r}")
        if task == 'fgvc':
            kwargs.setdefault('loss_metric', None)
        super().__init__(num_classes, in_channels, **kwargs)
        if infer_branch not in ('both', 'sa', 'glca'):
            raise ValueError(f"infer_branch must be 'both', 'sa' or 'glca', got {infer_branch!r}")
        for name, value in (('glca', glca), ('pwca', pwca), ('loss_weighting', loss_weighting)):
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f'{name} must be a dict, or None for none, got {value!r}')
        if not isinstance(normalize_parts, bool):
            raise ValueError(f'normalize_parts must be True or False, got {normalize_parts!r}')
        block = dict(num_heads=num_heads, feedforward_channels=feedforward_channels)
        block = {option: value for option, value in block.items() if value is not None}
        if twice := sorted(block.keys() & (glca or {})):
            raise ValueError(f'{twice} are given twice: leave them out of glca')
        if infer_branch == 'glca' and glca is None:
            raise ValueError("infer_branch='glca' needs the GLCA branch; glca is None")
        self.task = task
        if task == 'fgvc':
            self._check_classification(normalize_parts)
        self.infer_branch = infer_branch
        self.normalize_parts = normalize_parts
        self.glca: GLCABranch | None = None
        self._glca_options = None
        if glca is not None:
            self._glca_options = {**block, **glca}
        self.pwca = PWCASettings(**pwca) if pwca is not None else None
        if self.pwca is not None and not self.pwca.enable:
            self.pwca = None
        branches = ['sa'] if glca is None else ['sa', 'glca']
        self.necks = ModuleDict({branch: self._build_neck() for branch in branches})
        if self.pwca is not None:
            branches.append('pwca')
        self.loss_weighting = None
        if loss_weighting is not None:
            if 'tasks' in loss_weighting:
                raise ValueError(
                    f'loss_weighting.tasks are the branches that learn, {branches}: leave it out'
                )
            kind = dict(type='vitdown.UncertaintyWeightedLoss')
            self.loss_weighting = MODELS.build({**kind, **loss_weighting, 'tasks': branches})
        self._register_load_state_dict_pre_hook(self._drop_surplus)

    def _check_classification(self, normalize_parts: bool) -> None:
        if normalize_parts or self.neck_feat != 'before':
            raise ValueError(
                "task='fgvc' scores classes: normalize_parts and neck_feat choose the test feature "
                "of task='reid', leave them out"
            )
        if self.loss_id is None or getattr(self.loss_id, 'has_classifier', False):
            raise ValueError(
                "task='fgvc' needs a loss_id that its linear classifiers learn from, e.g. "
                "dict(type='mmpretrain.CrossEntropyLoss')"
            )

    @property
    def surplus_state(self) -> tuple[str, ...]:
        """Weights of other branches' losses, which a checkpoint may hold: nothing is tested by."""
        own = self.loss_weighting.tasks if self.loss_weighting is not None else ()
        others = [task for task in BRANCHES if task not in own]
        return tuple(f'loss_weighting.log_vars.{task}' for task in others)

    def _drop_surplus(self, state_dict: dict, prefix: str, *args: Any) -> None:
        for name in self.surplus_state:
            state_dict.pop(prefix + name, None)

    def _build_neck(self) -> BaseModule:
        if self.task == 'reid':
            return self._build_bnneck()
        return PlainNeck(self.in_channels, self.num_classes)

    def attach(self, backbone: BaseModule) -> None:
        """Make the GLCA branch, whose block is one of the kind of the backbone's last layer.

        Raises:
            ValueError: See :meth:`ReIDHead.attach` and :class:`GLCABranch`.
        """
        super().attach(backbone)
        if self._glca_options is not None:
            self.glca = GLCABranch(backbone, **self._glca_options)

    def init_from_backbone(self, backbone: BaseModule) -> None:
        """Start the GLCA branch from the backbone's last layer where it is configured so."""
        if self.glca is not None:
            self.glca.init_from_backbone(backbone)

    def token_options(self, labels: Tensor | None = None) -> dict:
        """See :meth:`ReIDHead.token_options`: attention for GLCA, partners for PWCA."""
        options: dict[str, Any] = {}
        used = labels is not None or self.infer_branch != 'sa'
        if used and self.glca is not None and self.glca.needs_attention:
            options['need_attention'] = 'factors'
        if labels is not None and self.training and self.pwca is not None:
            classes = labels.argmax(dim=1) if labels.ndim == 2 else labels
            options['partner'] = pair_indices(len(labels), self.pwca.pairing, classes)
            options['partner_stream'] = self.pwca.partner_stream
        return options

    def _test_branches(self) -> list[str]:
        if self.infer_branch == 'both':
            return list(self.necks)
        return [self.infer_branch]

    def _feature(self, branch: str, feats: Any) -> Tensor:
        if branch == 'sa':
            return feats.normed_tokens[:, 0]
        assert self.glca is not None  # attach made it
        return self.glca(feats)

    def _main_branch(self, feats: Any) -> tuple[Tensor, BaseModule]:
        return self._feature('sa', feats), self.necks['sa']

    def branches(self, feats: Any) -> dict[str, tuple]:
        """Feature ``(B, D)`` and neck of every branch that learns, from ``TokenFeatures``."""
        branches = {name: (self._feature(name, feats), neck) for name, neck in self.necks.items()}
        if feats.normed_pair_tokens is not None:
            neck = self.necks['sa']
            if self.task == 'reid':
                neck = BatchStatisticsNeck(neck)
            branches['pwca'] = (feats.normed_pair_tokens[:, 0], neck)
        return branches

    def loss(self, feats: Any, labels: Tensor) -> dict[str, Tensor]:
        """Weighted loss and what to log, from ``TokenFeatures`` with labels ``(B,)``."""
        logs, totals = {}, {}
        for branch, (feature, neck) in self.branches(feats).items():
            losses = self._feature_losses(feature, neck, labels)
            totals[branch] = sum(v for name, v in losses.items() if name.startswith('loss'))
            for name, value in losses.items():
                logs[f'{branch}_{name.removeprefix("loss_")}'] = value.detach()
        if self.loss_weighting is None:
            return {'loss': sum(totals.values()), **logs}
        total, weights = self.loss_weighting(totals)
        logs.update({f'{branch}_log_var': w for branch, w in weights.items()})
        return {'loss': total, **logs}

    def metric_losses(self, feats: Any, labels: Tensor) -> dict[str, Tensor]:
        """See :meth:`ReIDHead.metric_losses`: of all branches, with their weights."""
        totals = {}
        for branch, (feature, neck) in self.branches(feats).items():
            losses = self._feature_losses(feature, neck, labels)
            totals[branch] = sum(v for k, v in losses.items() if k.startswith('loss_metric'))
        if self.loss_weighting is None:
            return {'loss_metric': sum(totals.values())}
        # Without the weights' own term, which is in the loss already.
        own_term, _ = self.loss_weighting({k: torch.zeros_like(v) for k, v in totals.items()})
        return {'loss_metric': self.loss_weighting(totals)[0] - own_term}

    def predict(self, feats: Any) -> Tensor:
        """Test features or scores from ``TokenFeatures``.

        Returns:
            Tensor: ``(B, D)`` for each branch, concatenated and not normalised as a whole; for
            ``'fgvc'`` the sum of the branches' probabilities ``(B, num_classes)``.
        """
        outs = []
        for branch in self._test_branches():
            feature, neck = self._feature(branch, feats), self.necks[branch]
            if self.task == 'fgvc':
                outs.append(neck.classifier(neck(feature)).softmax(dim=-1))
                continue
            feature = self._test_feature(feature, neck)
            outs.append(F.normalize(feature) if self.normalize_parts else feature)
        return sum(outs) if self.task == 'fgvc' else torch.cat(outs, dim=1)
