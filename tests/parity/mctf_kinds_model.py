"""Checks of the reference files of MCTF and ToMe that concern whole models."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.converters import convert_state_dict
from vitdown.models.backbones import VisionTransformer
from vitdown.models.losses.token_consistency import (
    TokenConsistencyLoss,
    label_confidence,
    squared_distance,
)
from vitdown.models.token_fusion import parse_r

from .golden import GoldenFile

FUSION_SETTINGS = (
    'r',
    'layers',
    'attention',
    'prop_attn',
    'tau_sim',
    'tau_info',
    'tau_size',
    'bidirectional',
    'pooling',
    'min_tokens',
)


class Classifier(nn.Module):
    """Backbone and linear classifier of a reference file, with its weights loaded strictly."""

    def __init__(self, golden: GoldenFile, token_fusion: dict | None = None) -> None:
        super().__init__()
        config = golden.config['backbone']
        self.backbone = VisionTransformer(
            arch=dict(
                embed_dims=config['embed_dims'],
                num_layers=config['depth'],
                num_heads=config['num_heads'],
                feedforward_channels=int(config['embed_dims'] * config['mlp_ratio']),
            ),
            img_size=tuple(config['img_size']),
            patch_size=config['patch_size'],
            in_channels=config['in_channels'],
            qkv_bias=config['qkv_bias'],
            qk_scale=config['qk_scale'],
            norm_cfg=dict(type='LN', eps=config['norm_eps']),
            drop_rate=config['drop_rate'],
            attn_drop_rate=config['attn_drop_rate'],
            drop_path_rate=config['drop_path_rate'],
            token_fusion=token_fusion,
        )
        assert list(self.backbone.patch_resolution) == config['patch_grid']
        self.head = nn.Module()
        self.head.layers = nn.Module()
        self.head.layers.head = nn.Linear(
            config['embed_dims'], golden.config['head']['num_classes']
        )
        entry = golden.config['state_dict']
        weights_file = GoldenFile(golden.path.with_name(entry.get('file', golden.path.name)))
        weights = weights_file.tensors(entry['prefix'])
        converted = convert_state_dict(weights, 'mctf')
        self.load_state_dict(converted)
        own_name = {id(value): key for key, value in converted.items()}
        self.names = {key: own_name[id(value)] for key, value in weights.items()}

    def classify(self, feature: Tensor) -> Tensor:
        return self.head.layers.head(feature)


def mctf_config(settings: dict) -> dict:
    assert settings.get('num_protected', 1) == 1
    return dict(type='MCTF', **{k: settings[k] for k in FUSION_SETTINGS if k in settings})


@torch.no_grad()
def compare_fused(golden: GoldenFile, case: str, model: Classifier, blocks: list[int]) -> None:
    """Run a fused model and compare logits, token counts, sizes, sources and block outputs."""
    model.eval()
    image = golden.tensor('img')
    outs = []
    model.backbone.token_fusion.register_forward_hook(lambda _, args, out: outs.append(out))
    feats = model.backbone.forward_tokens(image)
    golden.compare(f'{case}/logits', model.classify(feats.normed_tokens[:, 0]))
    counts = [out[0].shape[1] for out in outs]
    golden.compare(f'{case}/tokens_per_block', torch.tensor(counts))
    num_tokens = 1 + feats.patch_resolution[0] * feats.patch_resolution[1]
    assert model.backbone.token_fusion.schedule(num_tokens) == counts
    for block in blocks:
        golden.compare(f'{case}/block{block}_out', outs[block][0])
        golden.compare(f'{case}/block{block}_size', outs[block][1].sizes(outs[block][0]))
    if f'{case}/block_last_out' in golden:
        golden.compare(f'{case}/block_last_out', feats.tokens)
    assert (feats.sizes is None) == (f'{case}/final_size' not in golden)
    if feats.sizes is not None:
        golden.compare(f'{case}/final_size', feats.sizes)
        golden.compare(f'{case}/final_source', feats.source)


def check_weights(golden: GoldenFile) -> None:
    model = Classifier(golden)
    assert sum(p.numel() for p in model.parameters()) == golden.config['num_parameters']


def check_eval(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        config = mctf_config({**golden.config['token_fusion'], **settings, 'type': 'MCTF'})
        for explicit_map in (False, True):
            model = Classifier(golden, {**config, 'explicit_map': explicit_map})
            compare_fused(golden, case, model, settings['record_blocks'])


def check_tome(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        if not settings['fuse']:
            model = Classifier(golden).eval()
            with torch.no_grad():
                feature = model.backbone(golden.tensor('img'))[-1]
                golden.compare(f'{case}/logits', model.classify(feature))
            continue
        schedule = settings['r_schedule']
        r = schedule['r']
        if schedule['type'] == 'inflect':
            r = (r, schedule['inflect'])
        depth = golden.config['backbone']['depth']
        golden.compare(f'{case}/r_per_layer', torch.tensor(parse_r(depth, r)))
        config = dict(type='ToMe', r=r, prop_attn=settings['prop_attn'])
        compare_fused(golden, case, Classifier(golden, config), [])


def check_train(golden: GoldenFile) -> None:
    config, losses = golden.config, golden.config['losses']
    weights, smoothing = losses['weights'], losses['label_smoothing']
    threshold = losses['consistency']['confidence_threshold']
    for explicit_map in (False, True):
        fusion = {**mctf_config(config['token_fusion']), 'explicit_map': explicit_map}
        model = Classifier(golden, fusion).train()
        image, target = golden.tensor('img').requires_grad_(), golden.tensor('target')
        teacher = model.backbone(image, fusion_r=config['r_teacher'])[-1]
        student = model.backbone(image)[-1]
        teacher_logits, student_logits = model.classify(teacher), model.classify(student)
        golden.compare('student_logits', student_logits)
        golden.compare('teacher_logits', teacher_logits)
        golden.compare('consistency_per_sample', squared_distance(student, teacher))
        confidence = label_confidence(student_logits, target)
        golden.compare('confidence', confidence)
        golden.compare('mask', (confidence > threshold).float())

        consistency = TokenConsistencyLoss(weights['consistency'], threshold)
        parts = {
            'student': weights['student'] * cross_entropy(student_logits, target, smoothing),
            'teacher': weights['teacher'] * cross_entropy(teacher_logits, target, smoothing),
            'consistency': consistency(student, teacher, student_logits, target),
        }
        for name, value in parts.items():
            golden.compare(f'loss_{name}', value)
        loss = sum(parts.values())
        golden.compare('loss', loss)
        loss.backward()
        golden.compare('grad/img', image.grad)
        parameters = dict(model.named_parameters())
        for key in golden.tensors('grad/'):
            if key != 'img':
                golden.compare(f'grad/{key}', parameters[model.names[key]].grad)


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, target, label_smoothing=smoothing)


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'mctf_vit_weights': check_weights,
    'mctf_vit_eval': check_eval,
    'mctf_vit_train': check_train,
    'tome_vit': check_tome,
}
