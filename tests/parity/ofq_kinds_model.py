"""Checks of the reference files of OFQ that concern modules and models."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models.heads import DeiTClsHead, LinearClsHead
from torch import Tensor, nn

from vitdown.converters.ofq import convert_ofq, export_ofq
from vitdown.models.backbones import DistilledVisionTransformer, SwinTransformer
from vitdown.models.layers import MultiheadAttention
from vitdown.models.losses.distillation import kd_loss
from vitdown.models.quantization import convert, quantizers_of

from .golden import GoldenFile


def quant_cfg(config: dict) -> dict:
    settings = ('w_bits', 'a_bits', 'edge_bits', 'qkr', 'act_granularity', 'w_quant')
    return dict(type='OFQ', **{name: config[name] for name in settings if name in config})


def reset_quantizers(model: nn.Module) -> None:
    """Zero shifts and steps that the next batch sets."""
    for quantizer in quantizers_of(model):
        quantizer.reset()
        for shift in (quantizer.shift_before, quantizer.shift_after):
            if shift is not None:
                nn.init.zeros_(shift)


class Renamed:
    """A part of a DeiT, loaded from and compared under the official names.

    Args:
        model: The module.
        foreign: What the official names of a whole DeiT have before those in the file.
        own: What the names of a whole DeiT here have before those of the module.
    """

    def __init__(self, model: nn.Module, foreign: str = '', own: str = '') -> None:
        self.model = model
        self.foreign = foreign
        self.own = own

    def load(self, state_dict: dict[str, Tensor]) -> None:
        state_dict = convert_ofq({self.foreign + k: v for k, v in state_dict.items()})
        self.model.load_state_dict({k.removeprefix(self.own): v for k, v in state_dict.items()})

    def official(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state_dict = export_ofq({self.own + key: value for key, value in tensors.items()})
        return {key.removeprefix(self.foreign): value for key, value in state_dict.items()}

    def check_init(self, golden: GoldenFile, run: Callable[[Tensor], object]) -> None:
        """Steps that the first batch sets, and the state with which the file goes on."""
        self.load(golden.tensors('sd/'))
        reset_quantizers(self.model)
        with torch.no_grad():
            run(golden.tensor('x_init'))
        state = self.official(self.model.state_dict())
        for name in golden.tensors('init/'):
            golden.compare(f'init/{name}', state[name])
        self.load(golden.tensors('sd/'))

    def check_gradients(self, golden: GoldenFile) -> None:
        parameters = dict(self.model.named_parameters())
        grads = self.official({key: p.grad for key, p in parameters.items()})
        for name in golden.tensors('grad/'):
            golden.compare(f'grad/{name}', grads[name])


class Part(nn.Module):
    """Attention or MLP of a block, under the name that it has there."""

    def __init__(self, **module: nn.Module) -> None:
        super().__init__()
        (self.name,) = module
        self.add_module(self.name, module[self.name])

    def forward(self, x: Tensor) -> Tensor:
        out = getattr(self, self.name)(x)
        return out[0] if isinstance(out, tuple) else out


def check_part(golden: GoldenFile, part: Part, foreign: str) -> None:
    """Steps, output and gradients of a part of a block."""
    config = golden.config
    part.eval()
    tokens = torch.zeros(1, config['num_tokens'], config['embed_dims'])
    convert(part, quant_cfg(config), run=lambda: part(tokens))
    renamed = Renamed(part, foreign, 'backbone.layers.0.')
    renamed.check_init(golden, part)
    x = golden.tensor('x').requires_grad_()
    out = part(x)
    golden.compare('out', out)
    (out * golden.tensor('grad_out')).sum().backward()
    golden.compare('grad_x', x.grad)
    renamed.check_gradients(golden)


def check_attention(golden: GoldenFile) -> None:
    config = golden.config
    assert not config['softmax_signed']
    attention = MultiheadAttention(
        config['embed_dims'],
        config['num_heads'],
        qkv_bias=config['qkv_bias'],
        qk_scale=config['logit_scale'],
    )
    check_part(golden, Part(attn=attention), 'blocks.0.attn.')


def check_mlp(golden: GoldenFile) -> None:
    config = golden.config
    assert config['fc1_input_signed']
    assert not config['fc2_input_signed']
    mlp = FFN(
        config['embed_dims'],
        config['hidden_dims'],
        act_cfg=dict(type='GELU'),
        add_identity=False,
    )
    check_part(golden, Part(ffn=mlp), 'blocks.0.mlp.')


class Classifier(nn.Module):
    """Backbone and head; logits of every head in training, their mean else."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def logits(self, x: Tensor) -> list[Tensor]:
        feats = self.backbone(x)
        if isinstance(self.head, LinearClsHead):
            return [self.head.fc(feats[-1].mean(dim=(2, 3)))]
        cls, dist = feats[-1]
        return [self.head.layers.head(cls), self.head.layers.head_dist(dist)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.logits(x)).mean(dim=0)


def check_model(
    golden: GoldenFile, model: Classifier, features: dict[str, nn.Module], names: list[str]
) -> None:
    """Steps, features, logits, losses, gradients and some optimizer steps of a classifier."""
    config = golden.config
    renamed = Renamed(model)
    model.eval()
    renamed.check_init(golden, model)

    captured = {}
    for name, module in features.items():
        module.register_forward_hook(lambda _, args, out, name=name: captured.update({name: out}))
    x = golden.tensor('x').requires_grad_()
    with torch.no_grad():
        golden.compare('logits_eval', model(x))
    for name in golden.tensors('feat/'):
        out, shape = captured[name], golden[f'feat/{name}'].shape
        golden.compare(f'feat/{name}', (out[0] if isinstance(out, tuple) else out).reshape(shape))

    kd = config['kd']
    target, teacher = golden.tensor('target'), golden.tensor('teacher_logits')

    def kd_total(logits: list[Tensor], target: Tensor) -> Tensor:
        soft = kd_loss(logits[-1], teacher, kd['temperature'], alpha=kd['soft_weight'])
        return kd['hard_weight'] * F.cross_entropy(logits[0], target) + soft

    model.train()
    logits = model.logits(x)
    for name, value in zip(names, logits, strict=True):
        golden.compare(name, value)
    golden.compare('kd_loss_softlabel', kd_total(logits, golden.tensor('soft_target')))
    loss = kd_total(logits, target)
    golden.compare('kd_loss', loss)
    loss.backward()
    golden.compare('grad_x', x.grad)
    renamed.check_gradients(golden)

    options = dict(config['optimizer'])
    assert options['type'] == 'AdamW'
    no_decay = ('cls_token', 'dist_token', 'pos_embed')
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and not name.endswith(no_decay)
        groups[decays].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            dict(params=params, weight_decay=options['weight_decay'] * decays)
            for decays, params in groups.items()
        ],
        lr=options['lr'],
        betas=options['betas'],
        eps=options['eps'],
    )
    losses = []
    for _ in range(options['num_steps']):
        optimizer.zero_grad()
        loss = kd_total(model.logits(golden.tensor('x')), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    golden.compare('train_losses', torch.stack(losses))


def check_deit(golden: GoldenFile) -> None:
    config = golden.config
    assert config['distilled']
    cfg = quant_cfg(config)
    backbone = DistilledVisionTransformer(
        arch=dict(
            embed_dims=config['embed_dims'],
            num_layers=config['depth'],
            num_heads=config['num_heads'],
            feedforward_channels=int(config['embed_dims'] * config['mlp_ratio']),
        ),
        img_size=config['img_size'],
        patch_size=config['patch_size'],
        in_channels=config['in_channels'],
        qkv_bias=config['qkv_bias'],
        norm_cfg=dict(type='LN', eps=config['norm_eps']),
        quant_cfg=cfg,
    )
    head = convert(DeiTClsHead(config['num_classes'], config['embed_dims']), cfg)
    features = {f'blocks.{i}': layer for i, layer in enumerate(backbone.layers)}
    features['patch_embed'] = backbone.patch_embed
    model = Classifier(backbone, head)
    check_model(golden, model, features, ['logits_cls', 'logits_dist'])


def check_swin(golden: GoldenFile) -> None:
    config = golden.config
    norm = dict(type='LN', eps=config['norm_eps'])
    backbone = SwinTransformer(
        arch=dict(
            embed_dims=config['embed_dims'],
            depths=config['depths'],
            num_heads=config['num_heads'],
        ),
        img_size=config['img_size'],
        patch_size=config['patch_size'],
        in_channels=config['in_channels'],
        window_size=config['window_size'],
        drop_path_rate=config['drop_path_rate'],
        out_indices=(len(config['depths']) - 1,),
        norm_cfg=norm,
        patch_cfg=dict(norm_cfg=norm),
        stage_cfgs=dict(
            block_cfgs=dict(norm_cfg=norm, ffn_ratio=config['mlp_ratio']),
            downsample_cfg=dict(norm_cfg=norm),
        ),
        quant_cfg=quant_cfg(config),
    )
    channels = config['embed_dims'] * 2 ** (len(config['depths']) - 1)
    head = convert(LinearClsHead(config['num_classes'], channels), quant_cfg(config))
    features = {'features.0': backbone.patch_embed}
    for i, stage in enumerate(backbone.stages):
        features[f'features.{2 * i + 1}'] = stage.blocks[-1]
        if stage.downsample is not None:
            features[f'features.{2 * i + 2}'] = stage.downsample
    check_model(golden, Classifier(backbone, head), features, ['logits_train'])


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'ofq_attention': check_attention,
    'ofq_mlp': check_mlp,
    'ofq_deit_model': check_deit,
    'ofq_swin_model': check_swin,
}
