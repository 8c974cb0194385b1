"""The recipes of SMMix, NKD and USKD: costs, what their bases train with, where teachers are."""

from functools import partial
from itertools import chain
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitdown.engine.complexity import get_flops
from vitdown.engine.launch import load_config
from vitdown.models.distillation import teacher
from vitdown.registry import MODELS

ROOT = Path(__file__).resolve().parents[1] / 'configs'
# Parameters, and 10^9 multiply-adds as MMEngine's counter has them.
COSTS = {
    'smmix/smmix_deit-tiny_4xb256-300e_in1k': (5_717_416, 1.258),
    'smmix/smmix_deit-small_4xb256-300e_in1k': (22_050_664, 4.608),
    'smmix/smmix_deit-base_4xb256-300e_in1k': (86_567_656, 17.583),
    'smmix/smmix_pvt-tiny_4xb256-300e_in1k': (13_229_288, 1.944),
    'smmix/smmix_pvt-small_4xb256-300e_in1k': (24_485_864, 3.834),
    'smmix/smmix_pvt-medium_4xb256-300e_in1k': (44_208_104, 6.686),
    'smmix/smmix_pvt-large_4xb256-300e_in1k': (61_369_320, 9.851),
    'nkd_uskd/uskd_mobilenet_8xb32_in1k': (4_231_976, 0.579),
    'nkd_uskd/uskd_mobilenet-v2_8xb32_in1k': (3_504_872, 0.314),
    'nkd_uskd/uskd_shufflenet-v2-1x_16xb64_in1k': (2_278_604, 0.149),
    'nkd_uskd/uskd_resnet18_8xb32_in1k': (11_689_512, 1.819),
    'nkd_uskd/uskd_resnet50_8xb32_in1k': (25_557_032, 4.112),
    'nkd_uskd/uskd_resnet101_8xb32_in1k': (44_549_160, 7.834),
    'nkd_uskd/uskd_regnetx-1600mf_8xb128_in1k': (9_190_136, 1.619),
    # The paper's, and the norm of the third stage.
    'nkd_uskd/uskd_swin-tiny_16xb64_in1k': (28_288_354 + 768, 4.509),
    'nkd_uskd/uskd_deit-tiny_4xb256_in1k': (5_717_416, 1.258),
}


def load(name: str) -> Config:
    return load_config(str(ROOT / f'{name}.py'))


def build(cfg: Config) -> BaseModel:
    """The model, without memory for its weights."""
    # Swin and PVT read their drop path rates from a tensor.
    linspace = partial(torch.linspace, device='cpu')
    with torch.device('meta'), mock.patch('torch.linspace', linspace):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', COSTS)
def test_costs_of_the_papers(name):
    params, gmacs = COSTS[name]
    model = build(load(name))
    norms = 0

    def count(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        nonlocal norms
        # MMEngine's counter, by element; ours leaves them out.
        norms += out.numel() * (2 if isinstance(module, _BatchNorm) else 5)

    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, _BatchNorm)):
            module.register_forward_hook(count)
    complexity = get_flops(model, (3, 224, 224))
    assert complexity.params == params
    assert (complexity.macs + norms) / 1e9 == pytest.approx(gmacs, abs=1.1e-3)


@pytest.mark.parametrize('decays', [False, True], ids=['deit-tiny', 'pvt-tiny'])
def test_position_embeddings_decay_as_in_the_models_own_recipe(decays):
    cfg = load(f'smmix/smmix_{"pvt" if decays else "deit"}-tiny_4xb256-300e_in1k')
    model = build(cfg)
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'})
    decay = {id(p): g['weight_decay'] for g in wrapper.param_groups for p in g['params']}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    positions = {value for name, value in found.items() if name.endswith('pos_embed')}
    assert positions == {0.05 if decays else 0.0}
    assert {v for name, v in found.items() if name.endswith('cls_token')} == {0.0}


@pytest.mark.parametrize(
    ('name', 'base'),
    [
        ('uskd_regnetx-1600mf_8xb128', 'regnet/regnetx-1.6gf_8xb128'),
        ('nkd_deit-base_16xb64', 'deit/deit-base_16xb64'),
    ],
)
def test_hooks_of_the_base_stay(name, base):
    """A list replaces the base's list."""
    own = load(f'nkd_uskd/{name}_in1k').custom_hooks
    for hook in get_config(f'mmpretrain::{base}_in1k.py').custom_hooks:
        assert hook in own


OWN = sorted(
    f'{path.parent.name}/{path.stem}'
    for path in chain(*((ROOT / folder).glob('*.py') for folder in ('nkd_uskd', 'smmix')))
)


@pytest.mark.parametrize('name', OWN)
def test_hooks_of_a_recipe_get_ready_in_its_own_scope(name, monkeypatch):
    """Built as the runner builds them, with teacher, losses and taps; no weights."""

    def compare(student: nn.Module, network: nn.Module) -> None:
        # Without data there are no numbers to compare.
        said = [hasattr(model.data_preprocessor, 'mean') for model in (student, network)]
        assert said == [True, True], 'teacher or student does not normalise'

    monkeypatch.setattr(teacher, 'load_pretrained', mock.Mock())
    monkeypatch.setattr(teacher, 'input_conversion', compare)
    cfg = load(name)
    if 'data_preprocessor' in cfg:  # the runner does so
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with torch.device('meta'), mock.patch('torch.linspace', partial(torch.linspace, device='cpu')):
        model = MODELS.build(cfg.model)
        hooks = [
            HOOKS.build({key: value for key, value in hook.items() if key != 'priority'})
            for hook in cfg.get('custom_hooks') or []
        ]
        own = [hook for hook in hooks if type(hook).__module__.startswith('vitdown')]
        runner = mock.Mock(
            model=model,
            optim_wrapper=build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'}),
            hooks=hooks,
        )
        for hook in own:
            hook.before_run(runner)
    expected = [kind for kind in ('SMMix', 'USKD', 'NKD', 'DKD', 'KD') if has_hook(name, kind)]
    assert [type(hook).__name__ for hook in own] == [f'{kind}Hook' for kind in expected]
    added = {'SMMix': 'smmix_token_head', 'USKD': 'loss_uskd'}
    assert all(hasattr(model, added[kind]) for kind in expected if kind in added)


NVIT = sorted(path.stem for path in (ROOT / 'nvit').glob('*in1k-224.py'))


@pytest.mark.parametrize('name', NVIT)
def test_teachers_of_nvits_recipes_see_what_they_were_trained_on(name, monkeypatch):
    create, convert, teachers = timm.create_model, teacher.input_conversion, []

    def compare(student: nn.Module, network: nn.Module) -> None:
        assert convert(student, network) is None, 'they are not normalised alike'
        teachers.append(network)

    def create_small(model_name: str) -> nn.Module:
        assert model_name == 'regnety_160'
        return create('regnety_002')

    monkeypatch.setattr('timm.models.create_model', create_small)
    monkeypatch.setattr(teacher, 'load_pretrained', mock.Mock())
    monkeypatch.setattr(teacher, 'input_conversion', compare)
    cfg = load(f'nvit/{name}')
    hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks if hook.type == 'DistillationHook']
    runner = mock.Mock(
        model=MODELS.build(cfg.model), hooks=hooks, optim_wrapper=mock.Mock(spec=OptimWrapper)
    )
    for hook in hooks:
        hook.before_run(runner)
    expected = ['TimmClassifier', 'ImageClassifier'][: 1 if 'revit' in name else 2]
    assert [type(network).__name__ for network in teachers] == expected


def has_hook(name: str, kind: str) -> bool:
    return name.partition('/')[2].startswith(f'{kind.lower()}_')


def test_configs_find_their_teachers_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teachers = [
        hook.teacher
        for path in (ROOT / 'nkd_uskd').glob('nkd_*.py')
        for hook in load_config(str(path)).custom_hooks
        if 'NKDHook' in hook.type
    ]
    files = [t for t in teachers if isinstance(t, str) and '::' not in t]
    assert len(files) == 2
    assert all(Path(file).is_file() for file in files)
