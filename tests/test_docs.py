"""The documentation site, the command lines it describes, and what a wheel brings along."""

import importlib
import inspect
import itertools
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import vitdown
from tests.conftest import ROOT, run_tool
from vitdown import registry
from vitdown.engine.launch import load_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = [
    *sorted(ROOT.glob('*.md')), *sorted(ROOT.glob('docs/**/*.md')),
    *sorted(ROOT.glob('configs/*/README.md')), ROOT / 'benchmarks/README.md',
]  # fmt: skip

TOOLS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'tools').rglob('*.py')
    if "__name__ == '__main__'" in path.read_text() and 'installer' not in path.parts
)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    result = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', folder],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return folder


def test_every_method_has_a_page(site):
    for readme in ROOT.glob('configs/*/README.md'):
        page = site / readme.parent.relative_to(ROOT) / 'index.html'
        heading = readme.read_text().splitlines()[0].lstrip('# ')
        assert heading in page.read_text()


def test_the_site_loads_nothing_from_elsewhere(site):
    # Links to elsewhere are fine; scripts, styles, fonts and pictures are not.
    for page in site.rglob('*.html'):
        loaded = re.findall(
            r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text()
        )
        assert not loaded, page


def test_the_reference_shows_docstrings(site):
    text = (site / 'reference/inference.html').read_text()
    for name in ('ReIDInferencer', 'GalleryIndex.search', 'export_openvino'):
        assert f'.{name}"' in text, name
    assert 'Embed images with a re-ID model' in text


def registered() -> list:
    """Everything in vitdown's registries, but for what other tests add."""
    registries = [r for r in vars(registry).values() if isinstance(r, registry.Registry)]
    for one in registries:
        one.import_from_location()
    items = [item for one in registries for item in one.module_dict.values()]
    return [item for item in items if item.__module__.startswith('vitdown.')]


def exported() -> list:
    """Classes and functions that packages of vitdown list in ``__all__``."""
    names = [m.name for m in pkgutil.walk_packages(vitdown.__path__, 'vitdown.') if m.ispkg]
    packages = [importlib.import_module(name) for name in names]
    items = [getattr(p, name) for p in packages for name in getattr(p, '__all__', ())]
    return [item for item in items if inspect.isclass(item) or inspect.isfunction(item)]


@pytest.mark.parametrize('public', [registered, exported])
def test_the_reference_has_all_that_is_public(site, public):
    shown = set()
    for page in site.glob('reference/*.html'):
        shown |= set(re.findall(r' id="(vitdown\.[\w.]+)"', page.read_text()))
    missing = []
    for item in public():
        # An object is shown by its own module or by a package above it.
        modules = itertools.accumulate(item.__module__.split('.'), '{}.{}'.format)
        if shown.isdisjoint(f'{module}.{item.__name__}' for module in modules):
            missing.append(f'{item.__module__}.{item.__name__}')
    assert not missing, 'add these to docs/reference'


# All in one process: most of a tool's time goes into imports that they share.
HELP = """
import contextlib, io, json, runpy, sys

texts = {}
for tool in sys.argv[1:]:
    output = io.StringIO()
    sys.argv = [tool, '--help']
    sys.path[0] = str(tool.rpartition('/')[0])
    with contextlib.redirect_stdout(output):
        try:
            runpy.run_path(tool, run_name='__main__')
        except SystemExit as end:
            assert not end.code, (tool, end.code)
    texts[tool] = output.getvalue()
print(json.dumps(texts))
"""


@pytest.fixture(scope='module')
def help_texts() -> dict[str, str]:
    return json.loads(run_tool('-c', HELP, *TOOLS).stdout.splitlines()[-1])


def test_tools_say_how_they_are_used(help_texts):
    assert help_texts.keys() == set(TOOLS)
    for tool, text in help_texts.items():
        assert 'usage:' in text, tool
        assert '--help' in text, tool


def commands(page: Path) -> list[str]:
    """The command lines of a page, each with its continuation lines, and those within text."""
    text = page.read_text()
    blocks = re.findall(r'```(?:bash|sh|console)\n(.*?)```', text, re.S)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines() if line]
    return lines + re.findall(r'`((?:python )?tools/[^`\n]+)`', text)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_name_what_exists(page, help_texts):
    text = page.read_text()
    named = set(
        re.findall(r'(?<![\w/.-])(?:tools|configs|benchmarks)/[\w/-]+\.(?:py|sh|md)\b', text)
    )
    named |= {f'{m.replace(".", "/")}.py' for m in re.findall(r'-m (benchmarks\.\w+)', text)}
    missing = sorted(path for path in named if not (ROOT / path).is_file())
    assert not missing, f'{page.name} names {missing}, which do not exist'
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project'][
        'optional-dependencies'
    ]
    for command in commands(page):
        command = command.split(' #')[0]
        for target in re.findall(r'^make ((?:[a-z-]+ ?)+)', command):
            assert set(target.split()) <= targets, f'{page.name}: {command}'
        for names in re.findall(r'vitdown\[([\w,-]+)\]', command):
            assert set(names.split(',')) <= set(extras), f'{page.name}: {command}'
        for tool in re.findall(r'\btools/[\w/]+\.(?:py|sh)\b', command):
            tool = re.sub(r'(?:dist|slurm)_(train|test)\.sh', r'\1.py', tool)
            known = help_texts.get(tool, '')
            unknown = {o for o in re.findall(r' (--[a-z-]+)', command) if o not in known}
            assert not unknown, f'{page.name}: {tool} has no {sorted(unknown)}: {command}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_exist(page):
    for target, anchor in re.findall(r'\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)', page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), f'{page.name} links to {target}'
        if not anchor:
            continue
        text = file.read_text()
        headings = re.findall(r'^#+ (.+)', re.sub(r'```.*?```', '', text, flags=re.S), re.M)
        # As GitHub makes them: lower case, no punctuation, hyphens for spaces
        anchors = {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}
        assert anchor in anchors, f'{page.name} links to {target}#{anchor}, only {sorted(anchors)}'


def test_the_quick_start_goes_on_with_the_demos_model():
    config = re.search(r'^CONFIG=(.+)', (ROOT / 'docs/quick_start.md').read_text(), re.M)[1]
    assert f"CONFIG = ROOT / '{config}'" in (ROOT / 'tools/demo.py').read_text()


def test_a_short_first_training_is_one_that_runs():
    text = (ROOT / 'docs/own_data.md').read_text()
    base = re.search(r"^_base_ = '(.+)'", text, re.M)[1]
    options = re.search(r'--cfg-options (train_cfg.+?)\s+#', text)[1].split()
    cfg = load_config(str(ROOT / base), {k: int(v) for k, v in (o.split('=') for o in options)})
    assert cfg.param_scheduler.warmup_epochs < cfg.train_cfg.max_epochs == 1


def test_the_small_base_needs_no_weights():
    text = (ROOT / 'docs/own_data.md').read_text()
    base = re.search(r"`_base_ =\s+'(.+)'` is a small", text)[1]
    cfg = load_config(str(ROOT / base))
    assert cfg.model.backbone.get('init_cfg') is None
    large = re.search(r"^_base_ = '(.+)'", text, re.M)[1]
    options = dict(o.split('=') for o in re.findall(r'model\.backbone\.init_cfg\.\w+=FILE', text))
    assert load_config(str(ROOT / large), options).model.backbone.init_cfg.checkpoint == 'FILE'


def test_a_smaller_batch_fits_its_identities():
    text = (ROOT / 'docs/own_data.md').read_text()
    options = re.search(r'--cfg-options (train_dataloader\.batch_size.+?)`', text)[1].split()
    base = re.search(r"^_base_ = '(.+)'", text, re.M)[1]
    cfg = load_config(str(ROOT / base), {k: int(v) for k, v in (o.split('=') for o in options)})
    loader = cfg.train_dataloader
    assert loader.sampler.num_identities == 8
    assert loader.batch_size % 8 == 0


def test_the_model_index_lists_every_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert index == sorted(
        p.relative_to(ROOT).as_posix() for p in ROOT.glob('configs/*/metafile.yml')
    )


def copy_sources(folder: Path) -> Path:
    """A copy of what distributions are made of: building leaves files behind."""
    for name in ('vitdown', 'configs', 'tools'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def wheel_files(project: Path, folder: Path) -> list[str]:
    """Files in the wheel that pip builds of a folder or a source distribution."""
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', project, '--no-deps', '--no-build-isolation',
         '--quiet', '--wheel-dir', folder],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob('vitdown-*.whl')
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    source = copy_sources(tmp_path_factory.mktemp('source'))
    return wheel_files(source, tmp_path_factory.mktemp('wheel'))


def test_a_wheel_has_configs_tools_and_the_page(wheel):
    configs = [path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/*.py')]
    wanted = [f'vitdown/.mim/{name}' for name in (*configs, 'tools/train.py', 'model-index.yml')]
    wanted += [f'vitdown/apis/search_page/{n}' for n in ('templates/page.html', 'static/page.css')]
    assert not set(wanted) - set(wheel)
    assert not [name for name in wheel if 'installer' in name or name.startswith('tests')]


def test_a_source_distribution_is_as_good_as_the_checkout(wheel, tmp_path):
    source = copy_sources(tmp_path)
    build = 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'
    subprocess.run([sys.executable, '-c', build, 'dist'], cwd=source, check=True)
    (sdist,) = source.glob('dist/vitdown-*.tar.gz')
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert names >= {'requirements.txt', 'model-index.yml', 'tools/installer/steps.py'}
    assert not [name for name in names if '__pycache__' in name]
    assert sorted(wheel_files(sdist, source / 'dist')) == sorted(wheel)
