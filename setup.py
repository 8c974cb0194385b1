"""Puts configs and tools into the wheel as ``vitdown/.mim``, as OpenMMLab's packages do.

Everything else is in ``pyproject.toml``.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        # An editable install has the repository's own.
        if not self.editable_mode:
            target = Path(self.build_lib) / 'vitdown/.mim'
            shutil.rmtree(target, ignore_errors=True)
            for name in ('configs', 'tools'):
                ignored = shutil.ignore_patterns('__pycache__', 'installer', 'install.py')
                shutil.copytree(ROOT / name, target / name, ignore=ignored)
            shutil.copy2(ROOT / 'model-index.yml', target)


setup(cmdclass={'build_py': BuildWithConfigs})
