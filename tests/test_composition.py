"""Every pair of methods, and some triples, in one training: two iterations, then the reload.

``docs/composition.md`` shows the matrix; here it is true. Each method has an effect that is seen in
runs with it and in no others.
"""

import itertools
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmpretrain.structures import DataSample
from torch import nn

from vitdown.engine.hooks import ViTKDHook
from vitdown.engine.launch import build_runner, load_config
from vitdown.models.distillation import DistilledClassifier, find_classifier
from vitdown.registry import MODELS

from .conftest import ROOT

KEY = '0123456789abcdef0123456789abcdef'
PIPELINE_STEP = dict(type='ConvUnlearnable', num_classes=6)
DCAL_HEAD = dict(
    _delete_=True,
    type='DCALHead',
    task='reid',
    num_classes=6,
    in_channels=24,
    num_heads=3,
    feedforward_channels=48,
    loss_id=dict(type='mmpretrain.CrossEntropyLoss'),
    loss_metric=dict(type='TripletLoss', margin=None),
)
PRUNED = dict(
    embed_dims=24,
    num_layers=2,
    num_heads=[3, 2],
    qk_dims=[8, 4],
    v_dims=[8, 6],
    feedforward_channels=[48, 40],
)
# What each method adds to a config; hooks are appended.
METHODS = {
    'DCAL': dict(model=dict(head=DCAL_HEAD)),
    'SIE': dict(model=dict(backbone=dict(sie=dict(num_cameras=6)))),
    'MCTF': dict(
        model=dict(backbone=dict(token_fusion=dict(type='MCTF', r=2, layers=[0, 1], min_tokens=4)))
    ),
    'ToMe': dict(model=dict(backbone=dict(token_fusion=dict(type='ToMe', r=1)))),
    'NViT': dict(model=dict(backbone=dict(type='NViT', arch=dict(_delete_=True, **PRUNED)))),
    'OFQ': dict(
        model=dict(
            backbone=dict(quant_cfg=dict(type='OFQ', w_bits=4, a_bits=4, act_granularity='tensor'))
        )
    ),
    'SMMix': dict(custom_hooks=[dict(type='SMMixHook', switch_prob=1.0)]),
    'NKD': dict(custom_hooks=[dict(type='NKDHook')]),
    'USKD': dict(custom_hooks=[dict(type='USKDHook')]),
    'unlearnable': {},
}
PAIRS = list(itertools.combinations(METHODS, 2))
# Pairs that exclude each other -> what the error says.
REFUSED = {('MCTF', 'ToMe'): 'token_fusion takes the config of one policy'}
TRIPLES = [
    ('DCAL', 'SIE', 'MCTF'),
    ('DCAL', 'MCTF', 'OFQ'),
    ('MCTF', 'OFQ', 'NKD'),
    ('NViT', 'OFQ', 'NKD'),
    ('SMMix', 'NKD', 'MCTF'),
    ('DCAL', 'NViT', 'unlearnable'),
]


@pytest.fixture(scope='module')
def make_config(tiny_config, tiny_checkpoint, tmp_path_factory):
    """Config of a short training with some methods."""

    def make(*methods: str) -> Config:
        cfg = load_config(str(tiny_config), work_dir=str(tmp_path_factory.mktemp('run')))
        plain = cfg.model.to_dict()
        hooks = []
        for method in methods:
            added = dict(METHODS[method])
            hooks += added.pop('custom_hooks', [])
            cfg.merge_from_dict(added)
        for hook in hooks:
            if hook['type'] == 'NKDHook':
                hook |= dict(teacher=plain, teacher_checkpoint=str(tiny_checkpoint))
        if 'unlearnable' in methods:
            pipeline = list(cfg.train_dataloader.dataset.pipeline)
            cfg.train_dataloader.dataset.pipeline = [pipeline[0], PIPELINE_STEP, *pipeline[1:]]
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), *hooks]
        cfg.train_cfg = dict(by_epoch=False, max_iters=2, val_interval=10)
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = cfg.param_scheduler = None
        cfg.default_hooks.checkpoint = dict(type='SafeCheckpointHook', by_epoch=False, interval=2)
        return cfg

    return make


@pytest.fixture
def compose(make_config, monkeypatch):
    """The same, where there is a key for unlearnable data."""
    monkeypatch.setenv('VITDOWN_UNLEARNABLE_KEY', KEY)
    return make_config


class Watch(Hook):
    """Sees what a training does, and changes nothing.

    Attributes:
        logs (list[dict]): Losses and other logged values of each iteration.
        images (list[Tensor]): Images ``(B, 3, H, W)`` of each iteration, preprocessed.
        labels (list[Tensor]): Their identities ``(B,)``.
        seen (list[Tensor]): Images that the backbone worked on last in each iteration.
        tokens (int): Number of tokens that the backbone's layers leave.
        levels (dict): Most values that each quantizer gave a row of a weight, or a channel.
        without_gradients (set[str]): Losses that nothing was learned from; other logged
            values need not be learned from.
    """

    def before_train(self, runner) -> None:
        self.model = runner.model
        self.logs, self.images, self.labels, self.seen, self.levels = [], [], [], [], {}
        self.without_gradients, self._parse = set(), self.model.parse_losses
        self.model.parse_losses = self._see_losses
        backbone = self.model.backbone
        self._handles = [
            self.model.data_preprocessor.register_forward_hook(self._see_batch),
            backbone.patch_embed.register_forward_hook(self._see_images),
            backbone.ln1.register_forward_hook(self._see_tokens),
            *(q.register_forward_hook(self._see_levels) for q in block_quantizers(self.model) if q),
        ]

    def _see_batch(self, module, args, batch) -> None:
        self.images.append(batch['inputs'])
        self.labels.append(torch.cat([sample.gt_label for sample in batch['data_samples']]))

    def _see_losses(self, losses):
        self.without_gradients |= {
            name for name, loss in losses.items() if 'loss' in name and not loss.requires_grad
        }
        return self._parse(losses)

    def _see_images(self, module, args, out) -> None:
        self._last_images = args[0]

    def _see_tokens(self, module, args, out) -> None:
        self.tokens = out.shape[1]

    def _see_levels(self, quantizer, args, out) -> None:
        rows = out if out.ndim == 2 else out.flatten(0, -2).T
        steps = rows.sort(dim=1).values.diff(dim=1) != 0
        self.levels[quantizer] = int(steps.sum(dim=1).max()) + 1

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.logs.append({name: torch.as_tensor(value).item() for name, value in outputs.items()})
        self.seen.append(self._last_images)

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
        del self.model.parse_losses

    def learns_by(self, *names: str) -> bool:
        """Whether each of these losses had gradients and was neither zero nor infinite."""
        values = torch.tensor([log.get(name, 0.0) for log in self.logs for name in names])
        learned = bool((values.isfinite() & (values != 0)).all())
        return learned and self.without_gradients.isdisjoint(names)


def block_quantizers(model) -> list[nn.Module | None]:
    """Quantizers of the weights and inputs of all linear layers of the blocks; None for none."""
    layers = [m for m in model.backbone.layers.modules() if isinstance(m, nn.Linear)]
    return [getattr(m, name, None) for m in layers for name in ('weight_quant', 'input_quant')]


def block_sizes(model) -> list[tuple[int, int]]:
    """Width of queries, keys and values together, and that of the MLP, in each block."""
    linears = [(block.attn.qkv, block.ffn.layers[0][0]) for block in model.backbone.layers]
    return [tuple(len(linear.weight) for linear in pair) for pair in linears]


def features(model, first_camera: int = 0):
    images = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    samples = [DataSample(metainfo=dict(camera_id=first_camera + i, view_id=-1)) for i in range(2)]
    model.eval()
    with torch.no_grad():
        return torch.stack([out.feature for out in model(images, samples, mode='predict')])


def equal(images, others) -> bool:
    return all(torch.equal(*pair) for pair in zip(images, others, strict=True))


# What is seen in a training with the method and in none without, of ``Watch`` and the plain one's
EFFECTS = {
    'DCAL': lambda run, plain: run.learns_by('sa_id', 'glca_id', 'pwca_id'),
    'SIE': lambda run, plain: not torch.equal(features(run.model), features(run.model, 2)),
    'MCTF': lambda run, plain: plain.tokens - run.tokens == 4,
    'ToMe': lambda run, plain: plain.tokens - run.tokens == 2,
    'NViT': lambda run, plain: block_sizes(run.model) == [(3 * 24, 48), (2 * 14, 40)],
    'OFQ': lambda run, plain: all(
        run.levels.get(q, 0) in range(2, 2**4 + 1) for q in block_quantizers(run.model)
    ),
    'SMMix': lambda run, plain: (
        run.learns_by('loss_fine', 'loss_con') and not equal(run.seen, run.images)
    ),
    'NKD': lambda run, plain: run.learns_by('loss_nkd'),
    'USKD': lambda run, plain: run.learns_by('loss_uskd'),
    'unlearnable': lambda run, plain: not equal(run.images, plain.images),
}


@pytest.fixture(scope='module')
def plain_run(make_config) -> Watch:
    """A training without any of the methods."""
    runner, watch = build_runner(make_config()), Watch()
    runner.register_hook(watch)
    runner.train()
    return watch


@pytest.mark.parametrize(
    'methods',
    [*((name,) for name in METHODS), *(p for p in PAIRS if p not in REFUSED), *TRIPLES],
    ids='+'.join,
)
def test_trains_and_reloads(methods, compose, plain_run):
    cfg = compose(*methods)
    runner, watch = build_runner(cfg), Watch()
    runner.register_hook(watch)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    state = runner.model.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    moved = [name for name, value in state.items() if not torch.equal(value, before[name])]
    assert any('backbone.layers' in name for name in moved)
    assert any(name.startswith('head.') for name in moved)
    assert equal(watch.labels, plain_run.labels)
    assert {name for name, shows in EFFECTS.items() if shows(watch, plain_run)} == set(methods)

    saved = torch.load(Path(cfg.work_dir) / 'iter_2.pth', weights_only=False)['state_dict']
    assert saved.keys() == MODELS.build(cfg.model).state_dict().keys()
    model = MODELS.build(cfg.model)
    model.load_state_dict(saved)
    assert torch.equal(features(model), features(runner.model))


@pytest.mark.parametrize('pair', REFUSED, ids='+'.join)
def test_what_excludes_each_other_says_so(pair, compose):
    policies = [METHODS[name]['model']['backbone']['token_fusion'] for name in pair]
    cfg = compose()
    cfg.model.backbone.token_fusion = policies
    with pytest.raises(TypeError, match=REFUSED[pair]):
        MODELS.build(cfg.model)


SWIN = dict(_delete_=True, type='mmpretrain.SwinTransformer', arch='tiny', img_size=64)
LIMITS = {
    'per-token steps with token fusion': (
        dict(
            backbone=dict(
                token_fusion=dict(type='MCTF', r=2), quant_cfg=dict(type='OFQ', w_bits=4, a_bits=4)
            )
        ),
        "act_granularity='token' can't follow tokens.*set quant_cfg.act_granularity='tensor'",
    ),
    'DCAL on a hierarchical backbone': (
        dict(backbone=SWIN, head={**DCAL_HEAD, 'in_channels': 768}),
        'DCALHead works on tokens, which SwinTransformer does not offer',
    ),
    'DCAL for classification in a re-ID model': (
        dict(head={**DCAL_HEAD, 'task': 'fgvc', 'loss_metric': None}),
        "DCALHead.task='fgvc'. classifies images; use it in TokenClassifier",
    ),
}


@pytest.mark.parametrize('limit', LIMITS)
def test_what_can_not_compose_says_why(limit, compose):
    cfg = compose()
    changes, message = LIMITS[limit]
    cfg.merge_from_dict(dict(model=changes))
    with pytest.raises((TypeError, ValueError), match=message):
        MODELS.build(cfg.model)


def test_smmix_replaces_mixing_of_the_data_preprocessor(compose):
    cfg = compose('SMMix')
    cfg.model.data_preprocessor.batch_augments = dict(
        augments=[dict(type='mmpretrain.Mixup', alpha=0.8)]
    )
    with pytest.raises(ValueError, match='batch_augments'):
        build_runner(cfg).train()


@pytest.mark.parametrize('page', ['README.md', 'docs/composition.md'])
def test_documented_matrix_is_the_tested_one(page):
    """Every cell of the table says what happens here."""
    table = (ROOT / page).read_text().split('| | DCAL |')[1].split('\n\n')[0]
    header, _, *rows = f'| | DCAL |{table}'.splitlines()
    columns = [cell.strip() for cell in header.strip('|').split('|')][1:]
    assert columns == list(METHODS)
    shown = {}
    for line in rows:
        name, *cells = (cell.strip() for cell in line.strip('|').split('|'))
        shown |= {(name, other): cell for other, cell in zip(columns, cells)}
    for pair in PAIRS:
        assert shown[pair] == shown[pair[::-1]] == ('no' if pair in REFUSED else 'yes'), pair


def test_heads_know_no_distillation_token(compose):
    cfg = compose()
    cfg.model.backbone.type = 'DistilledVisionTransformer'
    jpm = dict(_delete_=True, type='JPMHead', num_classes=6, in_channels=24)
    for head in ({}, DCAL_HEAD, jpm):
        cfg.merge_from_dict(dict(model=dict(head=head)))
        with pytest.raises(ValueError, match='one class token, DistilledVisionTransformer has'):
            MODELS.build(cfg.model)


def test_mean_of_fused_tokens_is_refused(compose):
    cfg = compose('MCTF')
    cfg.model.backbone.out_type = 'raw'
    cfg.model.neck = dict(type='TokenPooling', mode='mean')
    with pytest.raises(ValueError, match="use out_type='avg_featmap'"):
        MODELS.build(cfg.model)


def test_classifier_is_not_taken_from_a_block_of_the_head(compose):
    """With 72 identities the block's qkv (3 x 24) has as many outputs."""
    cfg = compose('DCAL')
    cfg.model.head.num_classes = 72
    assert find_classifier(MODELS.build(cfg.model)) == 'head.necks.sa.classifier'


@pytest.mark.parametrize('side', ['student', 'teacher'])
@pytest.mark.parametrize('policy', ['MCTF', 'ToMe'])
def test_vitkd_does_not_compare_fused_tokens(side, policy, compose):
    plain, fused = compose().model, compose(policy).model
    student, teacher = (fused, plain) if side == 'student' else (plain, fused)
    message = (
        f'taps.{side}_high: token fusion .* ViTKD .* leave out .* of this VisionTransformer or'
    )
    cfg = compose()
    cfg.model = student
    runner = build_runner(cfg)
    runner.register_hook(ViTKDHook(MODELS.build(teacher), teacher_dims=24))
    with pytest.raises(ValueError, match=message):
        runner.train()
    loss = dict(type='ViTKDLoss', student_dims=24, teacher_dims=24)
    with pytest.raises(ValueError, match=message):
        DistilledClassifier(student, dict(loss_vitkd=loss), MODELS.build(teacher))


@pytest.mark.parametrize('r', [-5, 1.5, True, 'a'])
def test_number_of_fused_tokens_is_checked_in_each_call(r, compose):
    backbone = MODELS.build(compose('ToMe').model).backbone
    with pytest.raises(ValueError, match='fusion_r must be a number of tokens'):
        backbone(torch.rand(1, 3, 32, 16), fusion_r=r)
    plain = MODELS.build(compose().model).backbone
    with (
        pytest.raises(ValueError, match='needs a backbone with token_fusion'),
        plain.override_fusion(4),
    ):
        pass
