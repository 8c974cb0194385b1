"""Checks of the machine that fail in a second, before anything is downloaded."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import InstallError

FULL_INSTALLATION_GB = 12.0
UPDATE_GB = 2.0
# One compiler process of mmcv takes up to this much memory.
_COMPILER_GB = 1.5
_PROBE = '#include <Python.h>\n#include <optional>\nint main() { std::optional<int> x; }\n'


def check_venv_module() -> None:
    """Raise an InstallError when this Python can't create virtual environments with pip."""
    if importlib.util.find_spec('venv') is None or importlib.util.find_spec('ensurepip') is None:
        version = f'{sys.version_info.major}.{sys.version_info.minor}'
        raise InstallError(
            f'{sys.executable} can not create virtual environments (venv or ensurepip is missing)',
            f'install them (Debian, Ubuntu: apt install python{version}-venv), or name another'
            ' Python: make install PYTHON=/path/to/python',
        )


def check_disk(folder: Path, needed_gb: float) -> None:
    """Raise an InstallError when less than ``needed_gb`` GB (1e9 bytes) are free in ``folder``."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        raise InstallError(
            f'{folder} has {free_gb:.1f} GB of free disk space, the installation needs'
            f' {needed_gb:.0f} GB',
            'free some space, or put the environment on another disk:'
            ' make install VENV=/other/disk/vitdown-venv',
        )


def find_compilers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables CC and CXX that select the compilers of this machine.

    What the user has set is kept. The variables are always set, because a Python that was built
    elsewhere names the compilers of the machine it was built on.

    Raises:
        InstallError: There is no C++ compiler.
    """
    search_path = environ.get('PATH')

    def find(*names: str) -> str | None:
        return next((name for name in names if shutil.which(name, path=search_path)), None)

    cxx = environ.get('CXX') or find('c++', 'g++', 'clang++')
    if not cxx:
        raise InstallError(
            'no C++ compiler found (c++, g++ or clang++), mmcv has to be compiled',
            'install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS:'
            ' xcode-select --install), or name it: make install CXX=/path/to/c++',
        )
    cc = environ.get('CC') or find('cc', 'gcc', 'clang') or cxx
    return {'CC': cc, 'CXX': cxx}


def check_compiler(cxx: str, include_folder: str | None = None) -> None:
    """Raise an InstallError when ``cxx`` can't compile a C++17 extension of this Python.

    Args:
        cxx: The compiler, possibly followed by options.
        include_folder: Where ``Python.h`` is; by default that of the running Python.
    """
    include_folder = include_folder or sysconfig.get_path('include')
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / 'probe.cpp'
        source.write_text(_PROBE, encoding='utf-8')
        command = [*cxx.split(), '-std=c++17', '-fsyntax-only', f'-I{include_folder}', str(source)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InstallError(
                f'the C++ compiler {cxx} does not run ({error.strerror})',
                'correct CXX, or unset it to take the compiler of the system',
            ) from error
    if result.returncode == 0:
        return
    if 'Python.h' in result.stderr:
        version = f'{sys.version_info.major}.{sys.version_info.minor}'
        raise InstallError(
            f'the headers of Python {version} are missing ({include_folder}/Python.h)',
            f'install them (Debian, Ubuntu: apt install python{version}-dev; Fedora: dnf install'
            ' python3-devel), or name another Python: make install PYTHON=/path/to/python',
        )
    first = next((line for line in result.stderr.splitlines() if 'error' in line), '')
    raise InstallError(
        f'the C++ compiler {cxx} can not compile C++17: {first or "no message"}',
        'install GCC 9 or clang 10 or newer, or name another compiler: make install CXX=...',
    )


def parallel_compilers(environ: Mapping[str, str]) -> int:
    """Return how many files to compile at a time: MAX_JOBS if set, else what the machine bears."""
    if environ.get('MAX_JOBS', '').isdigit():
        return max(1, int(environ['MAX_JOBS']))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory_gb = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    return max(1, min(cores or 1, int(memory_gb / _COMPILER_GB)))


def cuda_obstacle(torch_cuda: str, nvcc_output: str | None) -> str | None:
    """Say why mmcv's CUDA operators can't be compiled on a machine with a GPU.

    Args:
        torch_cuda: The CUDA version that torch was built with, such as ``'13.0'``.
        nvcc_output: What ``nvcc --version`` prints; None when there is no nvcc.

    Returns:
        The reason, or None when nothing is in the way.
    """
    if nvcc_output is None:
        return 'no CUDA toolkit (nvcc) found'
    release = re.search(r'release (\d+)\.(\d+)', nvcc_output)
    if release is None:
        return 'nvcc does not tell its version'
    if release[1] != torch_cuda.split('.')[0]:
        return f'nvcc is of CUDA {release[1]}.{release[2]}, torch of CUDA {torch_cuda}'
    return None
