"""Brings READMEs of methods and benchmarks and their pictures into the site, and mends links.

READMEs keep their places, the pages of ``docs/`` move one folder up. Links between them are changed
accordingly; of links to files that are no pages, the text is left.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r'(?<!!)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the methods, each by the heading of its README."""
    for entry in config.nav:
        if 'Methods' in entry:
            entry['Methods'] = [{_title(path): _place(path)} for path in _methods()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pictures = sorted(ROOT.glob('configs/*/*.png'))
    for path in [*_methods(), ROOT / 'benchmarks/README.md', *pictures]:
        files.append(File.generated(config, _place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    home = page.file.src_uri
    generated = home.startswith(('configs/', 'benchmarks/'))
    # Where the file is in the repository
    folder = posixpath.dirname(home if generated else f'docs/{home}')

    def mend(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ''
        if not target or '://' in target:
            return match[0]
        place = posixpath.normpath(posixpath.join(folder, target)).removeprefix('docs/')
        if files.get_file_from_path(place) is None:
            return text
        return f'[{text}]({posixpath.relpath(place, posixpath.dirname(home) or ".")}{anchor})'

    return _LINK.sub(mend, markdown)


def _methods() -> list[Path]:
    return sorted(ROOT.glob('configs/*/README.md'))


def _place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _title(path: Path) -> str:
    return path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')
