"""Recipes of STViT-R's configs, as built."""

import math
import re
from pathlib import Path

import pytest
import torch
from mmdet.models.backbones import SwinTransformer as MMDetSwin
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from vitdown.checkpoint import CheckpointError
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
        ('mask-rcnn_stvit-r-swin-t_fpn_8xb2-1x_coco', 1e-4, 0.05),
        ('mask-rcnn_stvit-r-swin-t_fpn_8xb2-ms-3x_coco', 1e-4, 0.05),
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
    """Swin's, for more iterations; the Swin twins train alike."""
    cfg = load(f'upernet_stvit-r-swin-{size}_8xb2-240k_ade20k-512x512')
    twin = load(f'upernet_swin-{size}_8xb2-240k_ade20k-512x512')
    assert cfg.model.backbone.arch == twin.model.backbone.arch
    assert_twins(cfg, twin, drop_path_rate=0.3)
    warmup, poly = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.begin, warmup.end, warmup.by_epoch) == (
        'LinearLR', 1e-6, 0, 1500, False
    )  # fmt: skip
    assert (poly.type, poly.power, poly.eta_min, poly.begin, poly.end, poly.by_epoch) == (
        'PolyLR', 1.0, 0.0, 1500, 240_000, False
    )  # fmt: skip
    assert cfg.train_cfg.max_iters == 240_000
    assert cfg.model.backbone.pad_mask == 'exact'
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01
    )
    assert cfg.model.decode_head.loss_decode.loss_weight == 1.0
    assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4
    assert cfg.train_dataloader.batch_size == 2
    steps = {step['type']: step for step in cfg.train_dataloader.dataset.pipeline}
    assert (steps['RandomResize'].scale, steps['RandomResize'].ratio_range) == (
        (2048, 512), (0.5, 2.0)
    )  # fmt: skip
    assert (steps['RandomCrop'].crop_size, steps['RandomCrop'].cat_max_ratio) == ((512, 512), 0.75)
    assert steps['RandomFlip'].prob == 0.5
    test = {step['type']: step for step in cfg.test_dataloader.dataset.pipeline}
    assert test['Resize'].scale == (2048, 512)
    variants = {variants[0]['type']: variants for variants in cfg.tta_pipeline[-1].transforms}
    scales = [(1024, 256), (1536, 384), (2048, 512), (2560, 640), (3072, 768), (3584, 896)]
    assert [step.scale for step in variants['Resize']] == scales
    # Label 0 is what has no class
    annotations = (steps, test, {'LoadAnnotations': variants['LoadAnnotations'][0]})
    assert all(found['LoadAnnotations'].reduce_zero_label for found in annotations)
    for step in (*cfg.train_dataloader.dataset.pipeline, *cfg.test_dataloader.dataset.pipeline):
        TRANSFORMS.build(step)


def assert_twins(ours, swin, drop_path_rate):
    """Of one stochastic depth, one head and one training."""
    assert [cfg.model.backbone.drop_path_rate for cfg in (ours, swin)] == [drop_path_rate] * 2
    for key in (ours.model.keys() | swin.model.keys()) - {'backbone'}:
        assert ours.model[key] == swin.model[key], key
    for key in (
        'train_dataloader', 'test_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'
    ):  # fmt: skip
        assert ours[key] == swin[key], key


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('mask-rcnn_{}-mini_fpn_1xb4-4e_nuclei-256', 'stvit-r-swin'),
        ('upernet_{}-mini_1xb8-4e_camvid-180x240', 'stvit-r-swin'),
        ('{}-mini_1xb64-20e_flowers17-96x96', 'stvit-r-swin'),
        ('{}-mini_1xb64-20e_flowers17-96x96', 'stvit-swin'),
    ],
)
def test_small_models_train_as_their_twins(name, kind):
    assert_twins(load(name.format(kind)), load(name.format('swin')), drop_path_rate=0.0)


SCALES = [(side, 1333) for side in range(480, 801, 32)]
ONCE = dict(max_epochs=12, milestones=[8, 11], crop=None)
THRICE = dict(max_epochs=36, milestones=[27, 33], crop=(384, 600))


@pytest.mark.parametrize('size', 'tsb')
@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('mask-rcnn_{}_fpn_8xb2-1x_coco', ONCE),
        ('mask-rcnn_{}_fpn_8xb2-ms-3x_coco', THRICE),
        ('cascade-mask-rcnn_{}_fpn_8xb2-ms-3x_coco', THRICE),
    ],
)
def test_detection_recipe(name, expected, size):
    """Values of the released configs and of Swin's; the Swin twins train alike."""
    cfg = load(name.format(f'stvit-r-swin-{size}'))
    twin = load(name.format(f'swin-{size}'))
    assert cfg.model.backbone.arch == twin.model.backbone.arch
    assert_twins(cfg, twin, drop_path_rate=0.3 if size == 'b' else 0.2)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05
    )
    assert cfg.train_cfg.max_epochs == expected['max_epochs']
    warmup, steps = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.begin, warmup.end, warmup.by_epoch) == (
        'LinearLR', 0.001, 0, 500, False
    )  # fmt: skip
    assert (steps.type, steps.gamma, steps.by_epoch) == ('MultiStepLR', 0.1, True)
    assert (steps.milestones, steps.end) == (expected['milestones'], expected['max_epochs'])
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.backbone.pad_mask == 'exact'
    test_sizes = [step.scale for step in cfg.test_dataloader.dataset.pipeline if 'scale' in step]
    assert test_sizes == [(1333, 800)]
    steps = {step['type']: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandomFlip'].prob == 0.5
    if expected['crop'] is None:
        assert steps['Resize'].scale == (1333, 800)
        return
    (whole,), (before, crop, after) = steps['RandomChoice'].transforms
    assert whole.scales == after.scales == SCALES
    assert before.scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert (crop.crop_type, crop.crop_size) == ('absolute_range', expected['crop'])
    assert crop.allow_negative_crop


@pytest.mark.parametrize('name', ['stvit-r-swin-t', 'stvit-swin-b', 'stvit-deit-small'])
def test_classification_recipe(name):
    cfg = load(f'{name}_16xb64-300e_in1k-224')
    mixing = {step['type'].split('.')[-1]: step.alpha for step in cfg.model.train_cfg.augments}
    assert mixing == dict(Mixup=0.8, CutMix=1.0)
    assert cfg.model.head.loss.label_smooth_val == 0.1
    steps = {step['type'].split('.')[-1]: step for step in cfg.train_dataloader.dataset.pipeline}
    augment, erasing = steps['RandAugment'], steps['RandomErasing']
    assert augment.policies == 'timm_increasing'
    assert (augment.magnitude_level, augment.total_level, augment.magnitude_std) == (9, 10, 0.5)
    assert (augment.num_policies, augment.hparams.interpolation) == (2, 'bicubic')
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')
    crop = steps['RandomResizedCrop']
    assert (crop.scale, crop.interpolation) == (224, 'bicubic')
    test = {step['type'].split('.')[-1]: step for step in cfg.test_dataloader.dataset.pipeline}
    assert (test['ResizeEdge'].scale, test['ResizeEdge'].interpolation) == (256, 'bicubic')
    assert test['CenterCrop'].crop_size == 224
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8
    )


def official_swin(weights):
    """Names of Swin's repository for those of MMDetection."""
    names = {'stages.': 'layers.', '.w_msa.': '.', 'projection': 'proj'}
    names |= {'ffn.layers.0.0.': 'mlp.fc1.', 'ffn.layers.1.': 'mlp.fc2.'}
    renamed = {}
    for key, value in weights.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        renamed[key] = value
    return renamed


@pytest.mark.parametrize(('size', 'name'), [('t', 'tiny'), ('s', 'small'), ('b', 'base')])
@pytest.mark.parametrize(
    'config',
    [
        'upernet_swin-{}_8xb2-240k_ade20k-512x512',
        'mask-rcnn_swin-{}_fpn_8xb2-1x_coco',
        'mask-rcnn_swin-{}_fpn_8xb2-ms-3x_coco',
        'cascade-mask-rcnn_swin-{}_fpn_8xb2-ms-3x_coco',
    ],
)
def test_the_swin_baselines_name_official_weights_of_their_size(config, size, name):
    backbone = load(config.format(size)).model.backbone
    assert backbone.arch == name
    assert backbone.init_cfg.checkpoint.endswith(f'/swin_{name}_patch4_window7_224.pth')


@pytest.mark.parametrize(
    'config', ['upernet_swin-t_8xb2-240k_ade20k-512x512', 'mask-rcnn_swin-t_fpn_8xb2-1x_coco',
               'cascade-mask-rcnn_swin-t_fpn_8xb2-ms-3x_coco'],
)  # fmt: skip
def test_the_swin_baselines_load_official_weights_and_no_others(tmp_path, config):
    """As MMDetection's Swin converts them, which takes files that do not fit in silence."""
    arch = dict(embed_dims=8, depths=[1, 2, 1, 1], num_heads=[1, 1, 2, 4])
    path = tmp_path / 'swin.pth'
    expected = MMDetSwin(**arch, convert_weights=True, init_cfg=ConfigDict(checkpoint=str(path)))
    weights = {key: torch.rand_like(v.float()) for key, v in expected.state_dict().items()}
    weights = {k: v for k, v in weights.items() if not re.match(r'norm\d|.*position_index', k)}
    official = official_swin(weights) | {
        'norm.weight': torch.ones(64),
        'norm.bias': torch.zeros(64),
        'head.weight': torch.rand(5, 64),
        'head.bias': torch.rand(5),
        'layers.1.blocks.1.attn_mask': torch.rand(4, 49, 49),
    }
    torch.save({'model': official}, path)
    cfg = load(config).model.backbone
    cfg.arch, cfg.init_cfg.checkpoint = arch, str(path)
    model = MODELS.build(cfg)
    for backbone in (model, expected):
        backbone.init_weights()
        backbone.eval()
    with torch.no_grad():
        image = torch.rand(1, 3, 70, 118)
        for out, reference in zip(model(image), expected(image), strict=True):
            torch.testing.assert_close(out, reference)
    del official['layers.2.blocks.0.norm1.bias']
    torch.save({'model': official}, path)
    with pytest.raises(CheckpointError, match='missing: stages.2.blocks.0.norm1.bias'):
        model.init_weights()
    torch.save({'model': {'blocks.0.norm1.bias': torch.rand(8)}}, path)
    with pytest.raises(ValueError, match='Swin format has no weights blocks.0.norm1.bias'):
        model.init_weights()


@pytest.mark.parametrize(('size', 'rate'), [('t', 0.2), ('s', 0.3), ('b', 0.4)])
def test_classification_drop_path(size, rate):
    assert load(f'stvit-r-swin-{size}_16xb64-300e_in1k-224').model.backbone.drop_path_rate == rate


@pytest.mark.parametrize('size', 'tsb')
def test_cascade_recipe(size):
    ours = load(f'cascade-mask-rcnn_stvit-r-swin-{size}_fpn_8xb2-ms-3x_coco')
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
    for step in ours.train_dataloader.dataset.pipeline:
        TRANSFORMS.build(step)
