import math
import re
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope, Registry
from mmengine.utils import to_2tuple
from mmpretrain import registry as mmpretrain

from vitdown.engine.launch import load_config
from vitdown.registry import HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS

ROOT = Path(__file__).resolve().parents[1] / 'configs'
FOLDERS = sorted(p.name for p in ROOT.iterdir() if p.name != '_base_')
# The config that the options of a folder's README change
OPTIONS_BASE = {
    'mctf': 'mctf-r16_deit-small_8xb128-30e_in1k-224.py',
    'nkd_uskd': 'resnet8_1xb64-10e_cifar10-32x32.py',
    'nvit': 'nvit-prune_deit-small_1xb64-120e_market1501-256x128.py',
    'ofq': 'ofq-w4a4_vit-mini_1xb128-10e_cifar10-32x32.py',
    'reid': '*vit-base_1xb64-120e_market1501-256x128.py',
    'stvit': 'mask-rcnn_stvit-r-swin-mini_fpn_1xb4-4e_nuclei-256.py',
    'smmix': 'vit-mini_1xb128-10e_cifar10-32x32.py',
    'unlearnable': 'resnet-mini_1xb128-6e_cifar10-protected-32x32.py',
}
CONFIGS = sorted(p for p in ROOT.rglob('*.py') if '_base_' not in p.parts)
LOADED = {p: load_config(str(p)) for p in CONFIGS}  # to be read only
CLASSIFIERS = [p for p, cfg in LOADED.items() if 'ImageClassifier' in cfg.model.type]
# Detection and segmentation
DENSE = [p for p, cfg in LOADED.items() if cfg.default_scope in ('mmdet', 'mmseg')]


def build_model(cfg: Config) -> BaseModel:
    """The config's model; without memory for its weights, unless it is one of mmpretrain."""
    if 'ImageClassifier' in cfg.model.type:
        return MODELS.build(cfg.model).eval()
    # Swin reads its drop path rates from a tensor.
    linspace = partial(torch.linspace, device='cpu')
    with torch.device('meta'), mock.patch('torch.linspace', linspace):
        return MODELS.build(cfg.model)


def first_choices(pipeline: list[dict]) -> list[dict]:
    """Steps of a pipeline; where one of several is drawn, the first."""
    return [step['transforms'][0] if step['type'] == 'RandomChoice' else step for step in pipeline]


@pytest.mark.parametrize('path', CLASSIFIERS, ids=lambda p: p.stem)
def test_classifier_config_builds(path):
    """The parts of every classifier fit each other and the size of its training images."""
    cfg = load_config(str(path))
    (size,) = (
        step['scale'] if 'RandomResizedCrop' in step['type'] else step['crop_size']
        for step in first_choices(cfg.train_dataloader.dataset.pipeline)
        if 'Crop' in step['type']
    )
    with torch.no_grad():
        scores = build_model(cfg)(torch.zeros(2, 3, *to_2tuple(size)))
    assert scores.shape == (2, cfg.model.head.num_classes)
    for hook in cfg.get('custom_hooks') or []:
        # The runner takes the priority out.
        HOOKS.build({key: value for key, value in hook.items() if key != 'priority'})


@pytest.mark.parametrize(
    'path', [p for p in CONFIGS if p not in CLASSIFIERS + DENSE], ids=lambda p: p.stem
)
def test_config_builds(path):
    """The model of every re-ID and DCAL config builds and its parts fit each other."""
    cfg = load_config(str(path))
    model = build_model(cfg)
    size = model.backbone.img_size
    # Swin doubles the width between stages.
    merges = len(model.backbone.depths) - 1 if hasattr(model.backbone, 'depths') else 0
    assert model.head.in_channels == model.backbone.embed_dims * 2**merges
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        *_, last = (s for s in loader.dataset.pipeline if 'scale' in s or 'crop_size' in s)
        images = last['crop_size'] if 'crop_size' in last else last['scale'][::-1]
        assert to_2tuple(images) == tuple(size)


def found(registry: Registry, kind: str, scope: str) -> type | None:
    """The class of a type in a default scope."""
    with (
        DefaultScope.overwrite_default_scope(scope),
        registry.switch_scope_and_registry(None) as searched,
    ):
        return searched.get(kind)


def parts(cfg: Config) -> list[tuple[Registry, Registry, str]]:
    """Types of a classifier and of what prepares its images: in which registries, and the name."""
    model = cfg.model
    kinds = [model.type, *(model[n].type for n in ('backbone', 'neck', 'head') if model.get(n))]
    # Test images are only made unlearnable where their labels are known.
    steps = [s.type for s in cfg.test_dataloader.dataset.pipeline if s.type != 'ConvUnlearnable']
    models = [(MODELS, mmpretrain.MODELS, kind) for kind in kinds]
    return models + [(TRANSFORMS, mmpretrain.TRANSFORMS, step) for step in steps]


def test_mmpretrain_finds_the_classes_of_vitdown():
    """Its inferencer reads types in a scope of its own, where equal names mean other classes."""
    classifiers = [(p, cfg) for p, cfg in LOADED.items() if 'Classifier' in cfg.model.type]
    assert len(classifiers) > len(CLASSIFIERS)
    wrong = {
        (kind, path.name)
        for path, cfg in classifiers
        for ours, theirs, kind in parts(cfg)
        if found(ours, kind, cfg.default_scope) is not found(theirs, kind, 'mmpretrain')
    }
    assert not wrong, f'types that need the scope vitdown: {sorted(wrong)}'


@pytest.mark.parametrize('folder', FOLDERS)
def test_metafile_lists_every_config(folder):
    metafile = yaml.safe_load((ROOT / folder / 'metafile.yml').read_text())
    collections = {collection['Name']: collection for collection in metafile['Collections']}
    for collection in collections.values():
        assert collection['README'] == f'configs/{folder}/README.md'
        assert (ROOT.parent / collection['README']).is_file()
        assert (ROOT.parent / collection['Code']['URL']).is_file()
    entries = metafile['Models']
    listed = [entry['Config'] for entry in entries]
    there = [f'configs/{folder}/{path.name}' for path in (ROOT / folder).glob('*.py')]
    assert sorted(listed) == sorted(there), f'listed or there only: {set(listed) ^ set(there)}'
    for entry in entries:
        assert entry['In Collection'] in collections
        assert entry['Name'] == Path(entry['Config']).stem
        model = build_model(load_config(str(ROOT.parent / entry['Config'])))
        assert sum(p.numel() for p in model.parameters()) == entry['Metadata']['Parameters']


def bases_of(path: Path) -> set[Path]:
    """The files of ours that a config inherits from, at any remove."""
    names = [name for name in Config._get_base_files(str(path)) if '::' not in name]
    direct = {(path.parent / name).resolve() for name in names}
    return direct.union(*map(bases_of, direct))


def test_no_config_is_dead():
    """Each base is inherited by a config; each config has a folder's metafile, which lists it."""
    used = set().union(*map(bases_of, CONFIGS))
    bases = {path.resolve() for path in (ROOT / '_base_').rglob('*.py')}
    dead = sorted(path.relative_to(ROOT.resolve()).as_posix() for path in bases - used)
    assert not dead, f'no config inherits from {dead}: use them or remove them'
    stray = sorted(str(path) for path in CONFIGS if not (path.parent / 'metafile.yml').is_file())
    assert not stray, f'configs that no metafile can list: {stray}'


def readme_options() -> list[tuple[str, str]]:
    """The Python snippets of the READMEs that say what else a config can hold."""
    options = []
    for folder in FOLDERS:
        text = (ROOT / folder / 'README.md').read_text()
        for block in re.findall(r'```python\n(.*?)```', text, re.S):
            options += [(folder, part) for part in re.split(r'\n(?=# )', block.strip())]
    return options


@pytest.mark.parametrize(('folder', 'snippet'), readme_options())
def test_options_in_the_readme_build(tmp_path, monkeypatch, folder, snippet):
    monkeypatch.setenv('VITDOWN_UNLEARNABLE_KEY', 'seed:0')
    (base,) = (ROOT / folder).glob(OPTIONS_BASE.get(folder, OPTIONS_BASE['reid']))
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{base}'\n{snippet}\n")
    cfg = load_config(str(config))
    MODELS.build(cfg.model)
    for step in cfg.train_dataloader.dataset.pipeline:
        TRANSFORMS.build(step)
    for hook in cfg.get('custom_hooks', []):
        HOOKS.build(hook)


@pytest.mark.parametrize('folder', FOLDERS)
def test_there_are_options_in_the_readme(folder):
    assert sum(name == folder for name, _ in readme_options()) >= 5


@pytest.mark.parametrize(
    'name',
    [
        'dcal_deit-small_1xb64-120e_market1501-256x128',
        'dcal_deit-small_1xb16-100e_cub-448x448',
        'dcal_vit-mini_1xb64-40e_synthetic-128x64',
        'dcal_vit-mini_1xb64-40e_flowers17-96x96',
    ],
)
def test_weights_of_the_losses_do_not_decay(name):
    cfg = load_config(str(ROOT / f'dcal/{name}.py'))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    weights = set(model.head.loss_weighting.parameters())
    groups = [group for group in wrapper.param_groups if weights & set(group['params'])]
    assert sum(len(group['params']) for group in groups) == len(weights) == 3
    for group in groups:
        assert group['weight_decay'] == 0
        assert group['lr'] == cfg.optim_wrapper.optimizer.lr


def test_each_dcal_config_differs_from_its_baseline_in_the_head_alone():
    paths = sorted((ROOT / 'dcal').glob('dcal_*.py'))
    assert len(paths) == 35
    for path in paths:
        name = path.name.removeprefix('dcal_')
        (baseline,) = (p for p in (ROOT / 'dcal' / name, ROOT / 'reid' / name) if p.is_file())
        ours, theirs = load_config(str(path)), load_config(str(baseline))
        reid = ours.model.head.task == 'reid'
        assert ours.model.head.glca.ratio == (0.3 if reid else 0.1), path.stem
        for key in ('arch', 'img_size', 'patch_size', 'drop_path_rate'):
            default = 0.0 if key == 'drop_path_rate' else None
            assert ours.model.backbone.get(key, default) == theirs.model.backbone.get(key, default)
        for loader in ('train_dataloader', 'test_dataloader'):
            assert ours[loader] == theirs[loader], (path.stem, loader)
        if '1xb16-100e' in path.name:
            with torch.device('meta'):
                head = MODELS.build(theirs.model).head
            assert (list(head.necks), head.pwca, head.loss_weighting) == (['sa'], None, None)
            assert ours.optim_wrapper == theirs.optim_wrapper


RECIPES = [p for p in CONFIGS if '1xb64-120e' in p.name and p.parent.name == 'reid']


@pytest.mark.parametrize('path', RECIPES, ids=lambda p: p.stem)
def test_recipe_of_transreid(path):
    """Optimiser, batches, augmentation and schedule of the paper's baseline, as built."""
    cfg = load_config(str(path))
    model, dataset = path.stem.split('_')[0], path.stem.split('_')[2].split('-')[0]
    with torch.device('meta'):
        reid = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(reid, cfg.optim_wrapper).optimizer
    low = dataset == 'msmt17' and model in ('deit-small', 'vit-small')
    lr = 0.005 if low else 0.008
    names = {id(p): name for name, p in reid.named_parameters()}
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        for parameter in group['params']:
            expected = 2 * lr if 'bias' in names[id(parameter)] else lr
            assert group['lr'] == pytest.approx(expected), names[id(parameter)]
        assert (group['momentum'], group['weight_decay']) == (0.9, 1e-4)
        assert not group['nesterov']
    assert cfg.train_cfg.max_epochs == 120
    assert cfg.param_scheduler.warmup_epochs == 5
    assert (cfg.param_scheduler.warmup_start_ratio, cfg.param_scheduler.min_lr_ratio) == (
        0.01,
        0.002,
    )

    train = cfg.train_dataloader
    assert train.batch_size == 64
    assert (train.sampler.num_identities, train.sampler.num_instances) == (16, 4)
    steps = {step['type']: step for step in train.dataset.pipeline}
    assert steps['Resize']['interpolation'] == 'bicubic'
    assert steps['RandomFlip']['prob'] == 0.5
    assert steps['mmpretrain.RandomCrop']['padding'] == 10
    assert steps['PixelRandomErasing']['erase_prob'] == (0.5 if model == 'vit-base' else 0.8)
    test = {step['type']: step for step in cfg.test_dataloader.dataset.pipeline}
    assert test['Resize']['interpolation'] == 'bilinear'
    assert test['Resize']['backend'] == 'pillow'

    assert cfg.model.head.neck_feat == 'before'
    assert cfg.model.head.loss_metric.margin is None
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert list(cfg.model.data_preprocessor.mean) == [127.5] * 3


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_recipe_of_mctf(arch):
    """Fine-tuning with token fusion as its paper and released command have it, as built."""
    cfg = load_config(str(ROOT / f'mctf/mctf-r16_deit-{arch}_8xb128-30e_in1k-224.py'))
    model = build_model(cfg)
    policy = model.backbone.token_fusion
    assert policy.schedule(197)[-1] == 21
    assert (policy.tau_sim, policy.tau_info, policy.tau_size) == (1.0, 20.0, 40.0)
    assert (policy.pooling, policy.attention) == ('info_size', 'one_step_ahead')
    assert policy.bidirectional
    assert policy.prop_attn
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.model.head.loss.label_smooth_val == 0.1
    assert cfg.model.data_preprocessor.get('batch_augments') is None
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group['lr'], group['betas']) == (3e-5, (0.9, 0.999))
        for parameter in group['params']:
            decays = parameter.ndim > 1 and parameter.shape[:2] != (1, 1)
            decays &= parameter is not model.backbone.pos_embed
            assert group['weight_decay'] == (0.05 if decays else 0.0)
    scheduler = PARAM_SCHEDULERS.build({**cfg.param_scheduler, 'optimizer': optimizer})
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(
        [1e-6 + 2.9e-5 * (1 + math.cos(math.pi * epoch / 30)) / 2 for epoch in range(30)]
    )
    (hook,) = (HOOKS.build(hook) for hook in cfg.custom_hooks)
    assert (hook.r_max, hook.teacher_loss_weight) == (8, 1.0)
    assert (hook.consistency.loss_weight, hook.consistency.conf_thr) == (3.0, 0.4)
    train = cfg.train_dataloader
    assert train.batch_size == 128
    assert train.sampler == dict(type='mmpretrain.RepeatAugSampler', num_repeats=3, shuffle=True)
    steps = {step['type'].removeprefix('mmpretrain.'): step for step in train.dataset.pipeline}
    assert steps.keys() >= {'RandomResizedCrop', 'RandomFlip', 'RandAugment', 'PackInputs'}
    assert (steps['RandomErasing']['erase_prob'], steps['RandomErasing']['mode']) == (0.25, 'rand')


@pytest.mark.parametrize('arch', ['tiny', 'small'])
def test_recipe_of_fast_mctf(arch):
    cfg = load_config(str(ROOT / f'mctf/mctf-fast_deit-{arch}_8xb128-30e_in1k-224.py'))
    policy = cfg.model.backbone.token_fusion
    assert (policy.r, policy.layers) == (0.35, [3, 6, 9])
    (hook,) = (HOOKS.build(hook) for hook in cfg.custom_hooks)
    assert (hook.r_max, hook.teacher_loss_weight) == (0.15, 1.0)
    assert (hook.consistency.loss_weight, hook.consistency.conf_thr) == (3.0, 0.4)


def test_documents_link_to_what_exists():
    root = ROOT.parent
    for path in [root / 'README.md', *root.glob('docs/*.md'), *root.glob('benchmarks/*.md'),
                 *root.glob('configs/*/README.md')]:  # fmt: skip
        text = path.read_text()
        for target in re.findall(r'\]\((?!https?:)([^)#]+)', text):
            assert (path.parent / target).exists(), f'{path}: {target}'
        assert not re.search(r'\b[A-Z]+_(TABLE|NOTE)\b', text), f'{path}: placeholder'
