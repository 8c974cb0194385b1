"""Checks of the reference files of STViT that concern layers and stages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitdown.converters.renaming import rename
from vitdown.converters.stvit import SEMANTIC_BLOCK, convert_stvit, export_stvit, merge_projections
from vitdown.models.backbones.stvit_stages import DumbbellStage
from vitdown.models.layers import (
    CrossEncoderLayer,
    SemanticEncoderLayer,
    SemanticLayout,
    SemanticTokenGenerator,
    SemanticTokenRecovery,
)

from .golden import GoldenFile

STAGE = 'layers.2.'


def load_block(layer: nn.Module, weights: dict[str, Tensor]) -> None:
    layer.load_state_dict(rename(merge_projections(weights), SEMANTIC_BLOCK, 'STViT'))
    layer.eval()


def official_gradients(module: nn.Module, prefix: str = '') -> dict[str, Tensor]:
    """Gradients under official names, by the way that weights go."""
    grads = {
        'backbone.' + prefix + name: p.grad
        for name, p in module.named_parameters()
        if p.grad is not None
    }
    return {key.removeprefix(STAGE): value for key, value in export_stvit(grads).items()}


def weighted_loss(outs: list[Tensor], weights: list[Tensor]) -> Tensor:
    return sum((o * w).sum() / o[0].numel() ** 0.5 for o, w in zip(outs, weights))


def layer_options(config: dict) -> dict:
    assert config['act'] == 'gelu_exact'
    assert config['drop_path_rate'] == config['drop_rate'] == config['attn_drop_rate'] == 0
    return dict(
        embed_dims=config['embed_dims'],
        num_heads=config['num_heads'],
        feedforward_channels=config['mlp_ratio'] * config['embed_dims'],
        qkv_bias=config['qkv_bias'],
        norm_cfg=dict(type='LN', eps=config['norm_eps']),
        layer_scale_init_value=1e-5 if config['layer_scale'] else 0.0,
    )


def released_reach(config: dict) -> int:
    """Side of the key windows that, cut to the map, are the released ones."""
    (size,) = set(config['input_size'])
    window, kernel, stride = config['window_size'], config['key_kernel'], config['key_stride']
    assert config['key_padding'] == 0
    assert config['concat_pooled_keys']
    margin = kernel - window
    for i in range(size // window):
        first, last = max(0, i * window - margin), min(size, (i + 1) * window + margin)
        assert (first, last) == (i * stride, i * stride + kernel)
    return window + 2 * margin


def check_cls_blocks(golden: GoldenFile) -> None:
    for case, settings in golden.cases.items():
        tokens = [golden.tensor(f'{case}/{name}').requires_grad_() for name in settings['call']]
        options = layer_options(golden.config)
        if settings['block'] == 'semantic_generation':
            layer = SemanticTokenGenerator(
                **options,
                reach=released_reach(settings),
                with_own_keys=settings['concat_pooled_keys'],
                shortcut=settings['shortcut'],
                conv_pos=settings['use_conv_pos'],
            )
            layout = SemanticLayout(
                *settings['input_size'], settings['window_size'], settings['num_semantic']
            )
            assert list(layout.semantic_size) == settings['output_size']
            args = (layout.pool(tokens[0]), tokens[0], layout)
        elif settings['local'] or settings['relative_pos']:
            side = settings['window_size'] if settings['local'] else settings['map_size'][0]
            layer = SemanticEncoderLayer(
                **options,
                local=settings['local'],
                relative_side=side if settings['relative_pos'] else None,
            )
            # Each semantic token is a window of one image token.
            layout = SemanticLayout(*settings['map_size'], side, side)
            args = (tokens[0], layout)
        else:
            layer, args = CrossEncoderLayer(**options), tokens
        load_block(layer, golden.tensors(f'{case}/sd/'))
        out = layer(*args)
        golden.compare(f'{case}/out', out)
        loss = weighted_loss([out], [golden.tensor(f'{case}/loss_w')])
        golden.compare(f'{case}/loss', loss)
        loss.backward()
        for i, token in enumerate(tokens):
            golden.compare(f'{case}/grad_in{i}', token.grad)
        gradients = official_gradients(layer, 'stages.2.blocks.0.')
        for name in golden.tensors(f'{case}/grad/'):
            golden.compare(f'{case}/grad/{name}', gradients[f'blocks.0.{name}'])


@contextmanager
def recorded(modules: Iterator[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what modules return."""
    outs = []
    handles = [m.register_forward_hook(lambda _, args, out: outs.append(out)) for m in modules]
    yield outs
    for handle in handles:
        handle.remove()


def check_cls_stage(golden: GoldenFile) -> None:
    config = golden.config
    released_reach(config)
    assert config['key_mode'] == 'released_cls'
    stage = DumbbellStage(
        config['embed_dims'],
        config['depth'],
        config['num_heads'],
        input_size=config['input_size'],
        window_size=config['window_size'],
        num_semantic=config['num_semantic'],
        key_mode='released_cls',
        relative_pos=config['relative_pos'],
        use_global_center=config['use_global'],
        shortcut=config['shortcut'],
        conv_pos=config['use_conv_pos'],
        downsample='downsample' in config,
    ).eval()
    weights = {STAGE + key: value for key, value in golden.tensors('sd/').items()}
    own = {k.removeprefix('backbone.stages.2.'): v for k, v in convert_stvit(weights).items()}
    load_but_indices(stage, own)
    x = golden.tensor('x').requires_grad_()
    with recorded(stage.blocks) as block_outs:
        out, _ = stage(x, config['input_size'])
    for i, block_out in enumerate(block_outs):
        golden.compare(f'block{i}_out', block_out)
    golden.compare('out', out)
    loss = weighted_loss([out], [golden.tensor('loss_w')])
    golden.compare('loss', loss)
    loss.backward()
    golden.compare('grad_x', x.grad)
    gradients = official_gradients(stage, 'stages.2.')
    for name in golden.tensors('grad/'):
        golden.compare(f'grad/{name}', gradients[name])


def load_but_indices(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load all of a state dict; only buffers that are recomputed may be missing."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    recomputed = ('relative_position_index', 'num_batches_tracked')
    assert not [key for key in missing if not key.endswith(recomputed)]
    assert not unexpected


def check_det_blocks(golden: GoldenFile) -> None:
    config = golden.config
    layers = []
    for entry in config['chain']:
        recovery = entry['block'] == 'recovery'
        kind = SemanticTokenRecovery if recovery else SemanticTokenGenerator
        layer = kind(**layer_options(config), reach=entry['key_window'])
        load_block(layer, golden.tensors(f'{entry["name"]}/sd/'))
        layers.append(layer)
    assert config['shortcut']
    assert not config['use_conv_pos']
    for case, settings in golden.cases.items():
        x = golden.tensor(settings['x']).requires_grad_()
        layout = SemanticLayout(
            *settings['input_size'],
            config['window_size'],
            config['num_semantic'],
            settings['pad_mask'],
        )
        golden.compare(settings['s_hw'], torch.tensor(layout.semantic_size))
        out = layout.pool(x)
        for entry, layer in zip(config['chain'], layers):
            args = (x, out) if entry['block'] == 'recovery' else (out, x)
            out = layer(*args, layout)
            golden.compare(f'{case}/{entry["output"]}', out)
        loss = weighted_loss([out], [golden.tensor(f'{case}/loss_w')])
        golden.compare(f'{case}/loss', loss)
        loss.backward()
        golden.compare(f'{case}/grad_x', x.grad)


KINDS: dict[str, Callable[[GoldenFile], None]] = {
    'stvit_cls_blocks': check_cls_blocks,
    'stvit_cls_stage': check_cls_stage,
    'stvit_det_blocks': check_det_blocks,
}
