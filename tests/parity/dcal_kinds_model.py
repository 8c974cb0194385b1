"""Checks of the reference files of DCAL and TransReID that concern model, losses and schedule."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from vitdown.converters import convert_state_dict
from vitdown.engine.schedulers import WarmupCosineLR
from vitdown.models.backbones import VisionTransformer
from vitdown.models.heads import jigsaw_order
from vitdown.models.layers import resize_pos_embed
from vitdown.models.losses.triplet_loss import batch_hard_distances, batch_hard_triplet_loss
from vitdown.registry import MODELS

from .golden import GoldenFile


def backbone_config(config: dict) -> dict:
    """Arguments of ``VisionTransformer`` for a reference file's ``backbone`` entry."""
    embed_dims = config['embed_dims']
    return dict(
        arch=dict(
            embed_dims=embed_dims,
            num_layers=config['depth'],
            num_heads=config['num_heads'],
            feedforward_channels=int(embed_dims * config['mlp_ratio']),
        ),
        img_size=tuple(config['img_size']),
        patch_size=config['patch_size'],
        stride=config['stride'],
        in_channels=config['in_channels'],
        qkv_bias=config['qkv_bias'],
        qk_scale=config['qk_scale'],
        norm_cfg=dict(type='LN', eps=config['norm_eps']),
        patch_cfg=dict(padding=config['padding']),
        drop_rate=config['drop_rate'],
        attn_drop_rate=config['attn_drop_rate'],
        drop_path_rate=config['drop_path_rate'],
    )


def head_config(config: dict) -> dict:
    """Arguments that all re-ID heads take, for a reference file's settings."""
    losses = config['losses']
    return dict(
        num_classes=config['head']['num_classes'],
        in_channels=config['backbone']['embed_dims'],
        loss_id=dict(
            type='mmpretrain.LabelSmoothLoss',
            label_smooth_val=losses['id']['label_smoothing'],
            mode='original',
            loss_weight=losses['id']['weight'],
        )
        if losses['id']['label_smoothing']
        else dict(type='mmpretrain.CrossEntropyLoss', loss_weight=losses['id']['weight']),
        loss_metric=dict(
            type='TripletLoss',
            margin=losses['triplet']['margin'],
            normalize=losses['triplet']['normalize_feature'],
            loss_weight=losses['triplet']['weight'],
        ),
    )


def compare_gradients(golden: GoldenFile, gradients: dict[str, torch.Tensor]) -> None:
    """Compare gradients, given under the reference's parameter names, with all stored ones."""
    for key in golden.tensors('grad_sd/'):
        golden.compare(f'grad_sd/{key}', gradients[key])


def check_vit(golden: GoldenFile) -> None:
    sie = golden.config['sie']
    model = VisionTransformer(
        **backbone_config(golden.config['backbone']),
        sie=dict(
            num_cameras=sie['num_cameras'],
            num_views=sie['num_views'],
            coefficient=sie['coefficient'],
        )
        if sie['index'] is not None
        else None,
    )
    weights = golden.tensors('sd/')
    # The converter of whole models names the backbone's parts "base." and "backbone.".
    names = {
        key: next(iter(convert_state_dict({f'base.{key}': value}, 'transreid'))).removeprefix(
            'backbone.'
        )
        for key, value in weights.items()
    }
    model.load_state_dict({names[key]: value for key, value in weights.items()})
    model.eval()
    assert list(model.patch_resolution) == golden.config['backbone']['patch_grid']

    image = golden.tensor('img').requires_grad_()
    ids = {
        name: golden.tensor(key)
        for name, key in (('camera_ids', 'cam_label'), ('view_ids', 'view_label'))
        if key in golden
    }
    feature = model(image, **ids)[-1]
    golden.compare('feat', feature)
    golden.compare('tokens_before_last_block', model.forward_tokens(image, **ids).last_layer_input)
    (feature * golden.tensor('grad_out')).sum().backward()
    golden.compare('grad_img', image.grad)
    parameters = dict(model.named_parameters())
    compare_gradients(golden, {key: parameters[name].grad for key, name in names.items()})


def check_reid_model(golden: GoldenFile, head: dict) -> None:
    config = golden.config
    model = MODELS.build(
        dict(
            type='ReIdentifier',
            backbone=dict(type='VisionTransformer', **backbone_config(config['backbone'])),
            head={**head, **head_config(config)},
        )
    )
    weights = golden.tensors('sd/')
    converted = convert_state_dict(weights, 'transreid')
    model.load_state_dict(converted)
    name_of = {id(value): key for key, value in converted.items()}
    names = {key: name_of[id(value)] for key, value in weights.items() if id(value) in name_of}

    features = []
    for bnneck in model.head.modules():
        if isinstance(bnneck, torch.nn.BatchNorm1d):
            bnneck.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    logits = []
    for module in model.head.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == model.head.num_classes:
            module.register_forward_hook(lambda _, args, out: logits.append(out))

    model.train()
    image = golden.tensor('img').requires_grad_()
    feats = model.extract_feat(image)
    losses = model.head.loss(feats, golden.tensor('label'))
    loss, _ = model.parse_losses(losses)
    golden.compare('loss', loss)
    for i, (feature, score) in enumerate(zip(features, logits, strict=True)):
        golden.compare(f'feat_{i}', feature)
        golden.compare(f'score_{i}', score)
    loss.backward()
    golden.compare('grad_img', image.grad)
    parameters = dict(model.named_parameters())
    compare_gradients(
        golden, {key: parameters[name].grad for key, name in names.items() if name in parameters}
    )
    state = model.state_dict()
    for key in golden.tensors('after/'):
        golden.compare(f'after/{key}', state[names[key]])

    model.eval()
    with torch.no_grad():
        for neck_feat in ('before', 'after'):
            model.head.neck_feat = neck_feat
            golden.compare(f'eval_feat_{neck_feat}', model(golden.tensor('img')))


def check_bnneck(golden: GoldenFile) -> None:
    check_reid_model(golden, dict(type='BNNeckHead'))


def check_jpm(golden: GoldenFile) -> None:
    jpm = golden.config['jpm']
    head = dict(
        type='JPMHead',
        num_groups=jpm['divide_length'],
        shift=jpm['shift_num'],
        shuffle_groups=jpm['shuffle_groups'],
        rearrange=jpm['rearrange'],
    )
    check_reid_model(golden, head)


def check_jpm_shuffle(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        order = jigsaw_order(
            settings['num_patches'], settings['shift_num'], settings['shuffle_groups']
        )
        golden.compare(f'{case}/order', torch.tensor(order) + 1)


def check_pos_embed(golden: GoldenFile) -> None:
    config = golden.config
    for case, settings in golden.cases.items():
        resized = resize_pos_embed(
            golden.tensor(f'{case}/in'),
            tuple(settings['dst_grid']),
            mode=config['mode'],
            num_extra_tokens=config['num_extra_tokens'],
        )
        golden.compare(f'{case}/out', resized)


def check_triplet(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        features = golden.tensor(settings['feat']).requires_grad_()
        labels = golden.tensor(settings['label'])
        normalize = settings['normalize_feature']
        loss = batch_hard_triplet_loss(features, labels, settings['margin'], normalize)
        golden.compare(f'{case}/loss', loss)
        loss.backward()
        golden.compare(f'{case}/grad', features.grad)
        seen = F.normalize(features) if normalize else features
        dist_ap, dist_an, _ = batch_hard_distances(seen, labels)
        golden.compare(f'{case}/dist_ap', dist_ap)
        golden.compare(f'{case}/dist_an', dist_an)


def check_label_smooth(golden: GoldenFile) -> None:
    loss_module = MODELS.build(
        dict(
            type='mmpretrain.LabelSmoothLoss',
            label_smooth_val=golden.config['label_smoothing'],
            mode='original',
        )
    )
    logits = golden.tensor('logits').requires_grad_()
    loss = loss_module(logits, golden.tensor('label'))
    golden.compare('loss', loss)
    loss.backward()
    golden.compare('grad', logits.grad)


def check_lr(golden: GoldenFile) -> None:
    config = golden.config
    for case, settings in golden.cases.items():
        base_lr = settings['base_lr']
        weight, bias = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        optimizer = torch.optim.SGD(
            [{'params': weight}, {'params': bias, 'lr': base_lr * config['bias_lr_factor']}],
            lr=base_lr,
        )
        scheduler = WarmupCosineLR(
            optimizer,
            end=settings['max_epochs'],
            warmup_epochs=settings['warmup_epochs'],
            warmup_start_ratio=config['warmup_init_ratio'],
            min_lr_ratio=config['min_lr_ratio'],
        )
        rates = []
        for _ in range(settings['max_epochs']):
            rates.append([group['lr'] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        golden.compare(f'{case}/lr_weight_bias', torch.tensor(rates, dtype=torch.float64))


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'transreid_vit': check_vit,
    'transreid_bnneck': check_bnneck,
    'transreid_jpm': check_jpm,
    'transreid_jpm_shuffle': check_jpm_shuffle,
    'transreid_pos_embed': check_pos_embed,
    'transreid_triplet': check_triplet,
    'transreid_label_smooth': check_label_smooth,
    'transreid_lr': check_lr,
}
