"""Recipes of STViT-R's configs, as built."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from vitdown.engine.launch import load_config
from vitdown.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/stvit'


@pytest.fixture(autouse=True)
def default_scope():
    """Loading a config of MMDetection doesn't reach the next test."""
    yield
    init_default_scope('vitdown')


def load(name):
    return load_config(str(CONFIGS / f'{name}.py'))


@pytest.mark.parametrize(
    ('name', 'lr', 'weight_decay'),
    [
        ('cascade-mask-rcnn_stvit-r-swin-t_fpn_8xb2-ms-3x_coco', 1e-4, 0.05),
        ('upernet_stvit-r-swin-t_8xb2-240k_ade20k-512x512', 6e-5, 0.01),
    ],
)
def test_what_decays_in_dense_tasks(name, lr, weight_decay):
    """As released: norms and position biases do not; biases, layer scales, the stem's norms do."""
    cfg = load(name)
    wrapper_cfg = {**cfg.optim_wrapper, 'type': 'OptimWrapper'}
    wrapper_cfg.pop('loss_scale', None)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, wrapper_cfg).optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    decays = {
        names[id(p)]: group['weight_decay']
        for group in optimizer.param_groups
        for p in group['params']
    }
    assert {group['lr'] for group in optimizer.param_groups} == {lr}
    stage = 'backbone.stages.2.blocks'
    for name in (
        'backbone.norm0.weight',
        f'{stage}.0.norm1.bias',
        f'{stage}.1.ln1.weight',
        f'{stage}.5.ln2.bias',
        'backbone.stages.0.downsample.norm.weight',
        'backbone.stages.3.blocks.0.attn.w_msa.relative_position_bias_table',
    ):
        assert decays[name] == 0, name
    for name in (
        f'{stage}.1.attn.gamma1.weight',
        f'{stage}.1.attn.qkv.bias',
        'backbone.patch_embed.projection.0.bn.weight',
        f'{stage}.5.ffn.layers.1.weight',
    ):
        assert decays[name] == weight_decay, name


def test_what_decays_in_classification():
    cfg = load('stvit-r-swin-t_16xb64-300e_in1k-224')
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            flat = parameter.ndim == 1 or 'relative_position_bias_table' in name
            assert group['weight_decay'] == (0 if flat else 0.05), name


@pytest.mark.parametrize('name', ['stvit-r-swin-b', 'stvit-swin-s', 'stvit-deit-tiny'])
def test_learning_rates_in_classification(name):
    """Per iteration; the cosine is the released one, not shifted by the warm-up."""
    cfg = load(f'{name}_16xb64-300e_in1k-224')
    assert cfg.train_dataloader.batch_size == 64
    assert cfg.optim_wrapper.clip_grad.max_norm == 5.0
    optimizer = torch.optim.SGD(
        [torch.nn.Parameter(torch.zeros(1))], cfg.optim_wrapper.optimizer.lr
    )
    scheduler = PARAM_SCHEDULERS.build(
        cfg.param_scheduler,
        default_args=dict(optimizer=optimizer, epoch_length=4, end=cfg.train_cfg.max_epochs),
    )
    rates = []
    for _ in range(1200):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 80)
    assert rates[39] == pytest.approx((1e-6 + 1e-3) / 2)
    for epoch in (20, 113, 250, 300):
        cosine = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2
        assert rates[4 * epoch - 1] == pytest.approx(cosine), epoch


@pytest.mark.parametrize('size', 'tsb')
def test_segmentation_recipe(size):
    cfg = load(f'upernet_stvit-r-swin-{size}_8xb2-240k_ade20k-512x512')
    warmup, poly = cfg.param_scheduler
    assert (warmup.type, warmup.end) == ('LinearLR', 1500)
    assert (poly.type, poly.power, poly.begin, poly.end) == ('PolyLR', 1.0, 1500, 240_000)
    assert cfg.train_cfg.max_iters == 240_000
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_dataloader.dataset.pipeline[3].crop_size == (512, 512)


@pytest.mark.parametrize(('size', 'rate'), [('t', 0.2), ('s', 0.3), ('b', 0.4)])
def test_classification_drop_path(size, rate):
    assert load(f'stvit-r-swin-{size}_16xb64-300e_in1k-224').model.backbone.drop_path_rate == rate


@pytest.mark.parametrize('size', 'tsb')
def test_cascade_recipe(size):
    ours = load(f'cascade-mask-rcnn_stvit-r-swin-{size}_fpn_8xb2-ms-3x_coco')
    swin = load(f'cascade-mask-rcnn_swin-{size}_fpn_8xb2-ms-3x_coco')
    for key in ('neck', 'rpn_head', 'roi_head', 'train_cfg', 'test_cfg', 'data_preprocessor'):
        assert ours.model[key] == swin.model[key]
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
        assert ours[key] == swin[key]
    assert ours.model.backbone.drop_path_rate == (0.3 if size == 'b' else 0.2)
    assert ours.train_cfg.max_epochs == 36
    warmup, steps = ours.param_scheduler
    assert (warmup.start_factor, warmup.end) == (0.001, 500)
    assert steps.milestones == [27, 33]
    heads = ours.model.roi_head.bbox_head
    assert [head.loss_bbox for head in heads] == [dict(type='GIoULoss', loss_weight=10.0)] * 3
    assert [head.norm_cfg.type for head in heads] == ['SyncBN'] * 3
    assert [head.num_shared_convs for head in heads] == [4] * 3
    assert [head.bbox_coder.target_stds[0] for head in heads] == [0.1, 0.05, 0.033]
    assert all(head.reg_decoded_bbox and not head.reg_class_agnostic for head in heads)
    assert ours.model.roi_head.stage_loss_weights == [1, 0.5, 0.25]
    rpn, proposals = ours.model.train_cfg.rpn, ours.model.train_cfg.rpn_proposal
    assert rpn.allowed_border == 0
    assert (proposals.nms_pre, proposals.max_per_img) == (2000, 2000)
    assert [stage.assigner.pos_iou_thr for stage in ours.model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
    assert ours.model.test_cfg.rcnn.score_thr == 0.05
    pipeline = [TRANSFORMS.build(step) for step in ours.train_dataloader.dataset.pipeline]
    whole, cropped = pipeline[3].transforms
    assert [scale[0] for scale in whole.transforms[0].scales] == [*range(480, 801, 32)]
    assert [type(step).__name__ for step in cropped] == [
        'RandomChoiceResize',
        'RandomCrop',
        'RandomChoiceResize',
    ]
