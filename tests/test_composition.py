"""Every pair of methods, and some triples, in one training: two iterations, then the reload.

``docs/composition.md`` shows the matrix; here it is true.
"""

import itertools

import pytest
import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample

from vitdown.engine.launch import build_runner, load_config
from vitdown.models.distillation import find_classifier
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
    'ToMe': dict(model=dict(backbone=dict(token_fusion=dict(type='ToMe', r=2)))),
    'NViT': dict(model=dict(backbone=dict(type='NViT', arch=dict(_delete_=True, **PRUNED)))),
    'OFQ': dict(
        model=dict(
            backbone=dict(quant_cfg=dict(type='OFQ', w_bits=4, a_bits=4, act_granularity='tensor'))
        )
    ),
    'SMMix': dict(custom_hooks=[dict(type='SMMixHook')]),
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


@pytest.fixture
def compose(tiny_config, tiny_checkpoint, tmp_path, monkeypatch):
    """Config of a short training with some methods."""
    monkeypatch.setenv('VITDOWN_UNLEARNABLE_KEY', KEY)

    def build(*methods: str) -> Config:
        cfg = load_config(str(tiny_config), work_dir=str(tmp_path / 'run'))
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

    return build


def features(model):
    images = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    samples = [DataSample(metainfo=dict(camera_id=i, view_id=-1)) for i in range(2)]
    model.eval()
    with torch.no_grad():
        return torch.stack([out.feature for out in model(images, samples, mode='predict')])


@pytest.mark.parametrize(
    'methods',
    [*((name,) for name in METHODS), *(p for p in PAIRS if p not in REFUSED), *TRIPLES],
    ids='+'.join,
)
def test_trains_and_reloads(methods, compose, tmp_path):
    cfg = compose(*methods)
    runner = build_runner(cfg)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    state = runner.model.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    moved = [name for name, value in state.items() if not torch.equal(value, before[name])]
    assert any('backbone.layers' in name for name in moved)
    assert any(name.startswith('head.') for name in moved)

    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)['state_dict']
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
