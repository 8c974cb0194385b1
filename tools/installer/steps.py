"""The installation, step by step."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import checks, requirements, state
from .errors import InstallError
from .runner import Runner, format_seconds

# Raise it when the steps change so much that existing environments have to go through them again.
VERSION = 1
LOG_NAME = 'install.log'
_TORCH_INDEX = 'torch_index'
_REBUILD_SIGNS = ('undefined symbol', 'mmcv._ext', 'Symbol not found', 'cannot open shared object')
_MISSING_DISPLAY_SIGNS = ('libGL', 'libgthread', 'libglib', 'libxcb', 'libX11')


@dataclass(frozen=True)
class Context:
    """What the steps work on.

    Args:
        root: The checkout.
        venv: The virtual environment.
        groups: The pinned requirements by group, see :func:`.requirements.read_groups`.
        environ: The user's environment variables.
        runner: Runs the commands.
        torch_index: The index that PyTorch is taken from; empty for pip's own.
    """

    root: Path
    venv: Path
    groups: dict[str, list[str]]
    environ: Mapping[str, str]
    runner: Runner
    torch_index: str = ''

    @property
    def python(self) -> str:
        """The Python of the virtual environment."""
        return str(self.venv / 'bin' / 'python')

    def pip_install(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Run ``pip install`` in the environment, with all pins as constraints."""
        pins = str(self.root / 'requirements.txt')
        command = [self.python, '-m', 'pip', 'install', '-c', pins, *arguments]
        self.runner.run(command, env)


@dataclass(frozen=True)
class Step:
    """One step: it is done when ``key`` is found in the environment's state under ``name``."""

    name: str
    title: str
    key: str
    action: Callable[[Context], None]


def install_build_tools(context: Context) -> None:
    """Install what compiles mmcv, and the pinned pip."""
    context.pip_install(*context.groups['build'])


def install_torch(context: Context) -> None:
    """Install PyTorch, from the user's index of wheels if one is named.

    To pip the builds of one version are all the same, so a change of index has to be forced.
    """
    done = state.read(context.venv)
    options = ['--index-url', context.torch_index] if context.torch_index else []
    if 'torch' in done and _recorded_index(done) != context.torch_index:
        options.append('--force-reinstall')
    context.pip_install(*options, *context.groups['torch'])


def install_mmcv(context: Context) -> None:
    """Install mmcv, compiled against the installed torch, and try its operators.

    pip keeps the compiled wheel without regard to the torch it was compiled against. When the
    operators show such a mismatch, mmcv is compiled anew.

    Raises:
        InstallError: The operators don't work, even after the repairs.
    """
    env = mmcv_build_env(context)
    context.pip_install('-v', '--no-build-isolation', *context.groups['mmcv'], env=env)
    repairs = {'rebuild': _rebuild_mmcv, 'headless': _replace_opencv}
    while True:
        code, output = _verify(context, 'operators')
        if code == 0:
            return
        repair = repairs.pop(find_repair(code, output), None)
        if repair is None:
            raise _verification_error(context, 'the compiled operators of mmcv do not work', output)
        repair(context, env)


def install_libraries(context: Context) -> None:
    """Install everything else; two OpenMMLab packages are sources, which need our setuptools."""
    context.pip_install('--no-build-isolation', *context.groups['libraries'])


def install_project(context: Context) -> None:
    """Make ``import vitdown`` find this checkout."""
    context.pip_install('--no-deps', '--no-build-isolation', '-e', str(context.root))


def verify_environment(context: Context) -> None:
    """Import every package and show the versions.

    Raises:
        InstallError: A package can't be imported or gives wrong results.
    """
    code, output = _verify(context, 'all')
    if code:
        raise _verification_error(context, 'the installed packages do not work', output)
    versions = re.findall(r'^(\S+ \d\S*?)(?::.*)?$', output, flags=re.MULTILINE)
    context.runner.say('      ' + ', '.join(versions))


def mmcv_build_env(context: Context) -> dict[str, str]:
    """Return the environment variables for compiling mmcv.

    ``-g0 -O2`` halves the time: without it the flags of the Python build apply, with debug
    information. On a machine with a GPU but no fitting CUDA toolkit, mmcv would try to compile
    CUDA code and fail, so the GPU is hidden from it.
    """
    env = checks.find_compilers(context.environ)
    for name in ('CFLAGS', 'CXXFLAGS'):
        env[name] = f'{context.environ.get(name, "")} -g0 -O2'.strip()
    env['MAX_JOBS'] = str(checks.parallel_compilers(context.environ))
    probe = 'import torch; print("CUDA", torch.version.cuda, torch.cuda.is_available())'
    _, output = context.runner.capture([context.python, '-c', probe])
    cuda = re.search(r'^CUDA (\S+) (\S+)', output, flags=re.MULTILINE)
    if cuda and cuda[2] == 'True' and cuda[1] != 'None':
        obstacle = checks.cuda_obstacle(cuda[1], _nvcc_version(context.environ))
        if obstacle:
            env.update(CUDA_VISIBLE_DEVICES='', FORCE_CUDA='0')
            context.runner.say(
                f"      mmcv's operators are compiled for the CPU only: {obstacle}"
                ' (re-ID does not use them)'
            )
    return env


def find_repair(code: int, output: str) -> str | None:
    """Tell what helps when mmcv's operators fail.

    Args:
        code: Exit status of the check, negative after a crash.
        output: What it printed.

    Returns:
        ``'headless'``: OpenCV misses the libraries of a display; ``'rebuild'``: mmcv was compiled
        against another torch, or without any; None: unknown.
    """
    if any(sign in output for sign in _MISSING_DISPLAY_SIGNS):
        return 'headless'
    if code < 0 or any(sign in output for sign in _REBUILD_SIGNS):
        return 'rebuild'
    return None


def plan(context: Context, python_version: str) -> list[Step]:
    """Return the steps in order, each with the key that tells whether it is done."""
    inputs: dict[str, object] = {
        'build': [VERSION, python_version, context.groups['build']],
        'torch': [context.groups['torch'], context.torch_index],
        'mmcv': context.groups['mmcv'],
        'libraries': context.groups['libraries'],
        'project': [
            VERSION,
            str(context.root),
            (context.root / 'pyproject.toml').read_text(encoding='utf-8'),
        ],
        'verify': [],
    }
    # The project builds on the first step alone: a changed pyproject.toml is a matter of seconds.
    after = dict(zip(inputs, [None, 'build', 'torch', 'mmcv', 'build', 'libraries']))
    keys = state.chain_keys(inputs, after)
    minutes = max(1, round(10 / checks.parallel_compilers(context.environ)))
    about = f'about {minutes} minute{"s" if minutes > 1 else ""}, once; pip keeps the result'
    parts: list[tuple[str, str, Callable[[Context], None]]] = [
        ('build', 'Installing build tools', install_build_tools),
        ('torch', 'Installing PyTorch (a download of about 3 GB)', install_torch),
        ('mmcv', f'Compiling mmcv ({about})', install_mmcv),
        ('libraries', 'Installing the other libraries', install_libraries),
        ('project', 'Installing vitdown', install_project),
        ('verify', 'Checking the installation', verify_environment),
    ]
    return [Step(name, title, keys[name], action) for name, title, action in parts]


def pending(steps: list[Step], done: Mapping[str, str]) -> list[Step]:
    """Return the steps that have not been done, or have changed since."""
    return [step for step in steps if done.get(step.name) != step.key]


def execute(context: Context, steps: list[Step]) -> None:
    """Do the steps that are pending, and remember each one when it is done.

    Raises:
        InstallError: A step failed; those before it are remembered.
    """
    done = state.read(context.venv)
    todo = {step.name for step in pending(steps, done)}
    for number, step in enumerate(steps, start=2):
        label = f'[{number}/{len(steps) + 1}]'
        if step.name not in todo:
            context.runner.say(f'{label} {step.title.split(" (")[0]}: done before')
            continue
        context.runner.say(f'{label} {step.title}')
        started = time.monotonic()
        step.action(context)
        done[step.name] = step.key
        if step.name == 'torch':
            done[_TORCH_INDEX] = context.torch_index
        state.write(context.venv, done)
        context.runner.say(f'      done in {format_seconds(time.monotonic() - started)}')


def check_machine(context: Context, todo: list[Step]) -> None:
    """Check what the pending steps need, before the first of them starts.

    Raises:
        InstallError: Disk space, a C++ compiler or the headers of Python are missing.
    """
    names = {step.name for step in todo}
    if names & {'torch', 'mmcv', 'libraries'}:
        needed = checks.FULL_INSTALLATION_GB if 'torch' in names else checks.UPDATE_GB
        checks.check_disk(context.venv, needed)
    if 'mmcv' in names:
        compilers = checks.find_compilers(context.environ)
        probe = 'import sysconfig; print(sysconfig.get_path("include"))'
        include = subprocess.run(
            [context.python, '-c', probe], capture_output=True, text=True, check=True
        )
        checks.check_compiler(compilers['CXX'], include.stdout.strip())


def venv_python_version(venv: Path) -> str | None:
    """Return the version of a working environment, as in ``'3.12.1'``.

    Returns None for an environment whose Python is gone, has been replaced by another minor
    version, or lacks pip: what such an environment holds can't be used.
    """
    probe = (
        'import importlib.util, sys; v = sys.version_info; ok = importlib.util.find_spec("pip");'
        'print("%d.%d.%d" % v[:3] if ok else "")'
    )
    try:
        result = subprocess.run(
            [str(venv / 'bin' / 'python'), '-I', '-c', probe],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip() or None


def ensure_venv(venv: Path, say: Callable[[str], None]) -> str:
    """Create the virtual environment unless a working one is there; return its Python's version.

    Raises:
        InstallError: ``venv`` is something else, or the environment can't be created.
    """
    version = venv_python_version(venv)
    if version:
        return version
    if venv.exists():
        if any(venv.iterdir()) and not (venv / 'pyvenv.cfg').is_file():
            raise InstallError(
                f'{venv} exists, but is no virtual environment',
                'move it away, or name another place: make install VENV=/path/to/venv',
            )
        say(f'The Python of {venv} is gone or incomplete: creating the environment anew')
        shutil.rmtree(venv)
    checks.check_venv_module()
    checks.find_compilers(os.environ)
    venv.parent.mkdir(parents=True, exist_ok=True)
    checks.check_disk(venv.parent, checks.FULL_INSTALLATION_GB)
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, '-m', 'venv', str(venv)], capture_output=True, text=True, check=False
    )
    version = venv_python_version(venv)
    if result.returncode or not version:
        output = '\n'.join((result.stdout + result.stderr).splitlines()[-10:])
        raise InstallError(
            f'{sys.executable} could not create a virtual environment in {venv}',
            'install its venv package (Debian, Ubuntu: apt install python3-venv), or name another'
            ' Python: make install PYTHON=/path/to/python',
            output,
        )
    elapsed = format_seconds(time.monotonic() - started)
    say(f'      Python {version} in {venv}, done in {elapsed}')
    return version


def command_environment(environ: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """Return the variables that pip runs with: nothing asked, nothing outside the environment.

    Temporary files go to ``temporary``, because /tmp is often a small memory disk.
    """
    env = {k: v for k, v in environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET')}
    env.update(
        PIP_DISABLE_PIP_VERSION_CHECK='1',
        PIP_NO_INPUT='1',
        PIP_USER='0',
        PYTHONNOUSERSITE='1',
        PYTHONUNBUFFERED='1',
        TMPDIR=str(temporary),
    )
    return env


def install(root: Path, environ: Mapping[str, str]) -> None:
    """Bring the environment of the checkout ``root`` up to date.

    Raises:
        InstallError: With the remedy, whatever went wrong.
    """
    venv = Path(os.path.abspath(root / (environ.get('VENV') or '.venv')))
    groups = requirements.read_groups(root / 'requirements.txt')
    with _only_one(root):
        temporary = venv / 'tmp'
        runner = Runner(venv / LOG_NAME, command_environment(environ, temporary))
        # Without a word from the user, PyTorch stays what it is.
        index = environ.get('VITDOWN_TORCH_INDEX', _recorded_index(state.read(venv)))
        context = Context(root, venv, groups, environ, runner, index)
        version = venv_python_version(venv)
        if version and not pending(plan(context, version), state.read(venv)):
            runner.say(f'The environment is ready: {venv} (Python {version})')
            return
        started = time.monotonic()
        runner.say('[1/7] Virtual environment')
        version = ensure_venv(venv, runner.say)
        mine = f'{sys.version_info.major}.{sys.version_info.minor}'
        if not version.startswith(mine + '.'):
            runner.say(
                f'      keeping the one there is, of Python {version}; for Python {mine}:'
                ' make clean-env install'
            )
        steps = plan(context, version)
        check_machine(context, pending(steps, state.read(venv)))
        temporary.mkdir(exist_ok=True)
        try:
            execute(context, steps)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        runner.say(
            f'Installed in {format_seconds(time.monotonic() - started)}. Log: {runner.log_path}'
        )


def run_installation(root: str) -> int:
    """Install, and turn failures into one message each; return the exit status."""
    try:
        install(Path(root), os.environ)
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted. The same command goes on where it stopped.', file=sys.stderr)
        return 130
    return 0


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Hold a lock on the checkout, so that two installations don't work on one environment."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('Another installation is running in this checkout: waiting for it', flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _recorded_index(done: Mapping[str, str]) -> str:
    return done.get(_TORCH_INDEX, '')


def _verify(context: Context, what: str) -> tuple[int, str]:
    script = str(Path(__file__).with_name('verify.py'))
    # From another folder, and without the script's own: only what is installed counts.
    return context.runner.capture([context.python, script, what])


def _verification_error(context: Context, problem: str, output: str) -> InstallError:
    lines = [line for line in output.splitlines() if line.strip()][-8:]
    return InstallError(
        f'{problem}: {lines[-1] if lines else "the check crashed"}',
        'make clean-env install (if it persists, report it with the log)\n'
        f'log: {context.runner.log_path}',
        '\n'.join(f'    {line}' for line in lines),
    )


def _rebuild_mmcv(context: Context, env: Mapping[str, str]) -> None:
    context.runner.say('      the compiled mmcv at hand is of another PyTorch: compiling it anew')
    mmcv = requirements.pick(context.groups['mmcv'], 'onedl-mmcv')
    options = ['-v', '--no-build-isolation', '--no-cache-dir', '--force-reinstall', '--no-deps']
    context.pip_install(*options, *mmcv, env=env)


def _replace_opencv(context: Context, env: Mapping[str, str]) -> None:
    context.runner.say('      no display libraries (libGL): taking OpenCV without windows')
    headless = requirements.pick(context.groups['libraries'], 'opencv-python-headless')
    context.pip_install('--force-reinstall', '--no-deps', *headless)


def _nvcc_version(environ: Mapping[str, str]) -> str | None:
    home = environ.get('CUDA_HOME') or environ.get('CUDA_PATH')
    folders = [f'{home}/bin'] if home else [environ.get('PATH', ''), '/usr/local/cuda/bin']
    nvcc = shutil.which('nvcc', path=os.pathsep.join(folders))
    if nvcc is None:
        return None
    return subprocess.run([nvcc, '--version'], capture_output=True, text=True, check=False).stdout
