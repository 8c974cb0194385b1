"""The documentation site, the command lines it describes, and what a wheel brings along."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

from tests.conftest import ROOT, run_tool

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
    text = (site / 'reference.html').read_text()
    for name in ('ReIDInferencer', 'GalleryIndex.search', 'evaluate_ranking', 'VisionTransformer'):
        assert f'.{name}"' in text, name


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


def test_tools_say_how_they_are_used():
    lines = run_tool('-c', HELP, *TOOLS).stdout.splitlines()
    texts = json.loads(lines[-1])
    assert texts.keys() == set(TOOLS)
    for tool, text in texts.items():
        assert 'usage:' in text, tool
        assert '--help' in text, tool


def test_documented_tools_exist():
    pages = [*ROOT.glob('docs/*.md'), *ROOT.glob('configs/*/README.md'), ROOT / 'README.md']
    named = {
        (page.name, path)
        for page in pages
        for path in re.findall(r'\btools/[\w/]+\.(?:py|sh)\b', page.read_text())
    }
    missing = [(page, path) for page, path in named if not (ROOT / path).is_file()]
    assert not missing


def test_the_model_index_lists_every_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert index == sorted(
        p.relative_to(ROOT).as_posix() for p in ROOT.glob('configs/*/metafile.yml')
    )


def test_a_wheel_has_configs_tools_and_the_page(tmp_path):
    source = tmp_path / 'source'
    # A copy: building leaves files behind.
    for name in ('vitdown', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', source, '--no-deps', '--no-build-isolation',
         '--quiet', '--wheel-dir', tmp_path],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob('vitdown-*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    configs = [path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/*.py')]
    wanted = [f'vitdown/.mim/{name}' for name in (*configs, 'tools/train.py', 'model-index.yml')]
    wanted += [f'vitdown/apis/search_page/{n}' for n in ('templates/page.html', 'static/page.css')]
    assert not set(wanted) - set(names)
    assert not [name for name in names if 'installer' in name or name.startswith('tests')]
