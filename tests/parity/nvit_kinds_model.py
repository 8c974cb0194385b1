"""Checks of NViT's reference files that concern models: dense forward, export, losses."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdown.converters import convert_state_dict, export_state_dict
from vitdown.models.backbones import NViT
from vitdown.models.heads import DistilledClsHead
from vitdown.models.losses.nvit_distillation import cnn_distillation_loss, full_model_loss
from vitdown.models.pruning import Sizes, ViTStructure

from .golden import GoldenFile


class Classifier(nn.Module):
    """NViT backbone with both classifiers."""

    def __init__(self, config: dict, arch: dict, **kwargs) -> None:
        super().__init__()
        assert config['token_order'] == ['cls', 'dist', 'patches, row by row']
        self.backbone = NViT(
            arch=arch,
            img_size=config['img_size'],
            patch_size=config['patch_size'],
            in_channels=config['in_channels'],
            with_dist_token=config['with_dist_token'],
            qkv_bias=config['qkv_bias'],
            qk_scale=config['qk_scale'],
            norm_cfg=dict(type='LN', eps=config['norm_eps']),
            drop_rate=config['drop_rate'],
            attn_drop_rate=config['attn_drop_rate'],
            drop_path_rate=config['drop_path_rate'],
            **kwargs,
        )
        assert self.backbone.pos_embed.shape[1] == config['num_tokens']
        self.head = DistilledClsHead(config['num_classes'], self.backbone.embed_dims)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head.logit_pair(self.backbone(x))


def full_arch(model: dict) -> dict:
    """Equal blocks, of the model before pruning."""
    return dict(
        embed_dims=model['embed_dims'],
        num_layers=model['num_layers'],
        num_heads=model['num_heads'],
        qk_dims=model['head_dims'],
        v_dims=model['head_dims'],
        feedforward_channels=model['feedforward_channels'],
    )


def load_fused_deit(golden: GoldenFile, model: Classifier) -> None:
    """Weights in the fused DeiT layout; token factors keep their value of 1."""
    entry = golden.config['state_dict']
    weights = convert_state_dict(golden.tensors(entry['prefix']), 'deit-distilled')
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith('token_scale') for name in missing)


def official_gradients(model: Classifier) -> dict[str, Tensor]:
    """Gradients of all parameters under the names and in the layout of dense checkpoints."""
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    return export_state_dict(gradients, 'nvit')


def check_backbone(golden: GoldenFile) -> None:
    config = golden.config
    model = Classifier(
        config,
        config['arch'],
        token_scale=config['token_scale'],
        ln_mode=config['ln_mode'],
        norm_dims=config['norm_dims'],
    ).eval()
    weights = golden.tensors(config['state_dict']['prefix'])
    converted = convert_state_dict(weights, 'nvit')
    model.load_state_dict(converted)
    back = export_state_dict(converted, 'nvit')
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)

    backbone = model.backbone
    seen = {}

    def keep(name: str, pick: Callable = lambda out: out) -> Callable:
        def hook(module, args, out):
            seen[name] = pick(out)

        return hook

    backbone.patch_embed.register_forward_hook(keep('patch_embed', lambda out: out[0]))
    for i, layer in enumerate(backbone.layers):
        layer.attn.register_forward_hook(keep(f'block{i}_attn', lambda out: out[0]))
        layer.register_forward_hook(keep(f'block{i}', lambda out: out[0]))
    backbone.ln1.register_forward_hook(keep('norm_cls_dist', lambda out: out[:, :2]))
    x = golden.tensor('in/x').requires_grad_()
    cls_logits, dist_logits = model.logits(x)
    golden.compare('out/cls_logits', cls_logits)
    golden.compare('out/dist_logits', dist_logits)
    golden.compare('out/pred_eval', model.head(backbone(x)))
    for name in config['intermediates']:
        golden.compare(f'out/{name}', seen[name])
    loss = (cls_logits * golden.tensor('in/w_cls')).sum()
    loss = loss + (dist_logits * golden.tensor('in/w_dist')).sum()
    golden.compare('out/loss', loss)
    loss.backward()
    gradients = official_gradients(model)
    for name in config['gradients']:
        golden.compare(f'grad/{name}', x.grad if name == 'x' else gradients[name])


@torch.no_grad()
def check_export(golden: GoldenFile) -> None:
    config, model_config = golden.config, golden.config['model']
    masked = Classifier(model_config, full_arch(model_config), token_scale=True).eval()
    load_fused_deit(golden, masked)
    structure = ViTStructure(masked)
    layers = config['layers']
    assert [(u.kind, u.block, u.units) for u in structure.layers] == [
        (u['structure'], u['block'], u['units']) for u in layers
    ]
    gates = [golden.tensor(f'gates/layer{u["index"]}').bool() for u in layers]
    for i, layer in enumerate(masked.backbone.layers):
        attn = layer.attn
        attn.qkv.token_scale.copy_(golden.tensor(f'in/token_mask{i}'))
        # Factors of heads act on queries, keys and values: on rows of the joined weight.
        factor = golden.tensor(f'in/head_mask{i}')
        rows = torch.cat([factor.expand(-1, size // len(factor)).flatten()
                          for size in attn.part_sizes])  # fmt: skip
        attn.qkv.weight.mul_(rows[:, None])
        attn.qkv.bias.mul_(rows)
    for parameter, mask in structure.weight_masks(masked, gates):
        parameter.mul_(mask)
    x = golden.tensor('in/x')
    masked_logits = masked.logits(x)
    for name, value in zip(('cls', 'dist'), masked_logits):
        golden.compare(f'out/masked_{name}', value)

    sizes = Sizes.from_counts(structure.counts(gates))
    arch = sizes.arch(structure.qk_scale)
    expected = config['exported']
    assert abs(arch.pop('qk_scale') - expected['qk_scale']) < 1e-12
    assert arch == expected['arch']
    weights = structure.select(masked.state_dict(), gates)
    exported = export_state_dict(weights, 'nvit')
    entry = config['state_dict']
    assert exported.keys() == golden.tensors(entry['exported_prefix']).keys()
    for name, value in exported.items():
        golden.compare(entry['exported_prefix'] + name, value)
    for found, gate in zip(structure.gates_from_zeros(masked.state_dict()), gates):
        assert torch.equal(found, gate)
    for mode, settings in config['ln_modes'].items():
        dense = Classifier(
            model_config, arch, token_scale=True, ln_mode=mode, norm_dims=settings['norm_dims']
        ).eval()
        dense.load_state_dict(weights)
        for name, value in zip(('cls', 'dist'), dense.logits(x)):
            golden.compare(settings['outputs'].replace('*', name), value)
    dense_logits = [golden.tensor(f'out/dense_{name}') for name in ('cls', 'dist')]
    same = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(masked_logits, dense_logits))
    assert same == config['masked_equals_dense']


def check_losses(golden: GoldenFile) -> None:
    inputs = golden.tensors('in/')
    teacher = (inputs['full_teacher_cls'], inputs['full_teacher_dist'])

    def value(case: str, student: tuple[Tensor, Tensor]) -> Tensor:
        settings = golden.cases[case]
        if settings['type'] == 'sum':
            return sum(weight * value(name, student) for name, weight in settings['terms'].items())
        if settings['type'] == 'full':
            per_head = {'average': False, 'per head': True}[settings['logits']]
            return full_model_loss(student, teacher, settings['tau'], per_head)
        assert settings['type'] == 'cnn'
        return cnn_distillation_loss(
            student,
            inputs['soft_target'],
            inputs['cnn_teacher'],
            settings['distill'],
            settings.get('tau', 1.0),
            settings['base_weight'],
            settings['distill_weight'],
        )

    for case in golden.cases:
        names = ('student_cls', 'student_dist')
        student = tuple(inputs[name].clone().requires_grad_() for name in names)
        loss = value(case, student)
        golden.compare(f'out/{case}', loss)
        loss.backward()
        for name, logits in zip(names, student):
            golden.compare(f'grad/{case}/{name}', logits.grad)


def pruning_loss(golden: GoldenFile, batch: int, logits: tuple[Tensor, Tensor]) -> Tensor:
    """Loss of a saliency file: labels on the average, a teacher's classes on the second token."""
    weights = golden.config['loss']
    target = golden.tensor(f'in/b{batch}_soft_target')
    label = golden.tensor(f'in/b{batch}_teacher_label')
    return cnn_distillation_loss(
        logits,
        target,
        F.one_hot(label, target.shape[1]).float(),
        'hard',
        base_weight=weights['base_weight'],
        distill_weight=weights['distill_weight'],
    )


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'nvit_backbone': check_backbone,
    'nvit_export': check_export,
    'nvit_losses': check_losses,
}
