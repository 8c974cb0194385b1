import shlex
from argparse import ArgumentParser, Namespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper

from tests.conftest import ROOT
from tools.train import apply_amp, apply_args
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config
from vitdown.registry import HOOKS

from ..test_docs import PAGES, commands


def parse_options(*options: str) -> dict:
    parser = ArgumentParser()
    add_config_arguments(parser)
    return parser.parse_args(['config.py', '--cfg-options', *options]).cfg_options


def test_options_of_the_command_line():
    assert parse_options(
        "custom_hooks=[dict(type='SMMixHook', region_ratio=(0.25, 0.5))]",
        "model={'head': {'num_classes': 3}}",
        'randomness.seed=1',
        'key=[a,(1,2)]',
        'lr=1e-3',
    ) == {
        'custom_hooks': [dict(type='SMMixHook', region_ratio=(0.25, 0.5))],
        'model': dict(head=dict(num_classes=3)),
        'randomness.seed': 1,
        'key': ['a', (1, 2)],
        'lr': 1e-3,
    }


@pytest.mark.parametrize(
    'value', ['[dict(type=SMMixHook)]', 'dict(a=', 'dict(**{})', 'f(dict(a=1))']
)
def test_dicts_that_are_none(value, capsys):
    with pytest.raises(SystemExit):
        parse_options(f'custom_hooks={value}')
    assert f'{value!r} is no Python value' in capsys.readouterr().err


def test_dicts_take_the_place_of_other_values(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("model = dict(type='A', arch='small', sie=None, loss=dict(type='B', m=1))")
    options = {'model.arch': dict(width=48), 'model.sie': dict(num_cameras=3), 'model.loss.m': 2}
    assert load_config(str(config), options).model.to_dict() == dict(
        type='A', arch=dict(width=48), sie=dict(num_cameras=3), loss=dict(type='B', m=2)
    )
    for key, value, message in [
        ('model.arch.width', 48, "model.arch is 'small', no dict; .* model.arch=\"dict\\(width="),
        ('model.loss', 'C', 'model.loss is a dict; .*="dict\\(_delete_=True, type=\'C\'\\)"'),
        ('model', dict(arch=dict(width=48)), 'do not fit the config: arch='),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_config(str(config), {key: value})


def test_hooks_in_the_commands_of_the_documents_build():
    """As the shell splits the lines and the tools read them."""
    lines = [c for page in PAGES for c in commands(page) if 'custom_hooks=' in c]
    options = [shlex.split(line.split(' #')[0]) for line in lines]
    found = [part for words in options for part in words if part.startswith('custom_hooks=')]
    hooks = [hook for option in found for hook in parse_options(option)['custom_hooks']]
    assert len(hooks) == len(lines) > 0
    for hook in hooks:
        HOOKS.build(hook)


@pytest.mark.parametrize('amp', [None, False])
def test_recipes_in_mixed_precision_need_a_gpu_or_no_amp(monkeypatch, amp):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    path = ROOT / 'configs/stvit/mask-rcnn_stvit-r-swin-t_fpn_8xb2-1x_coco.py'
    cfg = Config.fromfile(path)
    if amp is None:
        with pytest.raises(ConfigError, match='needs a GPU: add --no-amp to train in full'):
            apply_amp(cfg, amp)
        return
    apply_amp(cfg, amp)
    wrapper = build_optim_wrapper(torch.nn.Linear(2, 2), cfg.optim_wrapper)
    assert type(wrapper) is OptimWrapper
    assert wrapper.optimizer.param_groups[0]['lr'] == 1e-4


def test_resume_keeps_the_weights_to_start_from(tmp_path):
    """A first call with --resume fine-tunes from load_from, a second one goes on."""
    args = Namespace(
        launcher='none', no_validate=False, amp=False, auto_scale_lr=False, resume='auto'
    )
    cfg = Config(dict(work_dir=str(tmp_path), load_from='pretrained.pth', resume=False))
    apply_args(cfg, args)
    assert (cfg.load_from, cfg.resume) == ('pretrained.pth', False)
    torch.save({'state_dict': {}}, tmp_path / 'epoch_1.pth')
    apply_args(cfg, args)
    assert (cfg.load_from, cfg.resume) == (str(tmp_path / 'epoch_1.pth'), True)
