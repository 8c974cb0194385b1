import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from vitdown.registry import MODELS

from ..layers import pair_indices
from .bnneck_head import BNNeck, ReIDHead
from .glca_branch import GLCABranch


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
        num_heads (int, optional): Heads of the GLCA block. Defaults to ``in_channels // 64``.
        feedforward_channels (int, optional): MLP width of the GLCA block. Defaults to
            ``4 * in_channels``.
        glca (dict, optional): ``ratio``, ``input``, ``pool``, ``init``, ``norm_cfg`` and
            ``layer_cfg`` of :class:`GLCABranch`. None for no such branch.
        pwca (dict, optional): ``enable``, ``pairing`` (see :func:`pair_indices`) and
            ``partner_stream`` (see :func:`two_stream_attention`). None for no such branch.
        loss_weighting (dict, optional): Defaults to :class:`UncertaintyWeightedLoss`. None for
            the plain sum.
        infer_branch (str): Branches at test time, ``'both'``, ``'sa'`` or ``'glca'``.
        normalize_parts (bool): L2-normalise each branch's test feature before they are
            concatenated. Defaults to False.
        **kwargs: Other arguments of :class:`ReIDHead`.
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
        loss_weighting: dict | None = dict(type='UncertaintyWeightedLoss'),
        infer_branch: str = 'both',
        normalize_parts: bool = False,
        **kwargs,
    ) -> None:
        if task not in ('reid', 'fgvc'):
            raise ValueError(f"task must be 'reid' or 'fgvc', got {task!r}")
        if task == 'fgvc':
            kwargs.setdefault('loss_metric', None)
        super().__init__(num_classes, in_channels, **kwargs)
        if infer_branch not in ('both', 'sa', 'glca'):
            raise ValueError(f"infer_branch must be 'both', 'sa' or 'glca', got {infer_branch!r}")
        if infer_branch == 'glca' and glca is None:
            raise ValueError("infer_branch='glca' needs the GLCA branch; glca is None")
        self.task = task
        self.infer_branch = infer_branch
        self.normalize_parts = normalize_parts
        self.glca = None
        if glca is not None:
            num_heads = num_heads or max(1, in_channels // 64)
            feedforward_channels = feedforward_channels or 4 * in_channels
            self.glca = GLCABranch(in_channels, num_heads, feedforward_channels, **glca)
        self.pwca = _pwca_options(**pwca) if pwca is not None else None
        branches = ['sa'] if glca is None else ['sa', 'glca']
        self.necks = ModuleDict({branch: self._build_neck() for branch in branches})
        if self.pwca is not None:
            branches.append('pwca')
        self.loss_weighting = None
        if loss_weighting is not None:
            self.loss_weighting = MODELS.build({**loss_weighting, 'tasks': branches})

    def _build_neck(self) -> BaseModule:
        if self.task == 'reid':
            return self._build_bnneck()
        return PlainNeck(self.in_channels, self.num_classes)

    def attach(self, backbone: BaseModule) -> None:
        """See :meth:`ReIDHead.attach`."""
        super().attach(backbone)
        if self.glca is not None:
            self.glca.attach(backbone)

    def init_from_backbone(self, backbone: BaseModule) -> None:
        """Start the GLCA branch from the backbone's last layer where it is configured so."""
        if self.glca is not None:
            self.glca.init_from_backbone(backbone)

    def token_options(self, labels: Tensor | None = None) -> dict:
        """See :meth:`ReIDHead.token_options`: attention for GLCA, partners for PWCA."""
        options = {}
        learns = labels is not None
        used = self.glca is not None and (learns or self.infer_branch != 'sa')
        if used and self.glca.needs_attention:
            options['need_attention'] = 'factors'
        if learns and self.training and self.pwca is not None:
            classes = labels.argmax(dim=1) if labels.ndim == 2 else labels
            options['partner'] = pair_indices(len(labels), self.pwca['pairing'], classes)
            options['partner_stream'] = self.pwca['partner_stream']
        return options

    def _test_branches(self) -> list[str]:
        if self.infer_branch == 'both':
            return list(self.necks)
        return [self.infer_branch]

    def _feature(self, branch: str, feats) -> Tensor:
        return feats.normed_tokens[:, 0] if branch == 'sa' else self.glca(feats)

    def _main_branch(self, feats) -> tuple[Tensor, BaseModule]:
        return self._feature('sa', feats), self.necks['sa']

    def branches(self, feats) -> dict[str, tuple]:
        """Feature ``(B, D)`` and neck of every branch that learns, from ``TokenFeatures``."""
        branches = {name: (self._feature(name, feats), neck) for name, neck in self.necks.items()}
        if feats.normed_pair_tokens is not None:
            neck = self.necks['sa']
            if self.task == 'reid':
                neck = BatchStatisticsNeck(neck)
            branches['pwca'] = (feats.normed_pair_tokens[:, 0], neck)
        return branches

    def loss(self, feats, labels: Tensor) -> dict[str, Tensor]:
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

    def predict(self, feats) -> Tensor:
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


def _pwca_options(
    enable: bool = True, pairing: str = 'random', partner_stream: str = 'pwca'
) -> dict | None:
    if pairing not in ('random', 'inter', 'intra'):
        raise ValueError(f"pwca.pairing must be 'random', 'inter' or 'intra', got {pairing!r}")
    if partner_stream not in ('pwca', 'sa'):
        raise ValueError(f"pwca.partner_stream must be 'pwca' or 'sa', got {partner_stream!r}")
    return dict(pairing=pairing, partner_stream=partner_stream) if enable else None
