"""The installer's logic, with a runner that records commands instead of running them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tools import install as entry
from tools.installer import checks, requirements, state, steps
from tools.installer.errors import InstallError, explain
from tools.installer.runner import Runner, format_seconds, last_activity

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = """\
# [build] tools
ninja==1.0
# [torch] pair
torch==2.0
# [mmcv] compiled
onedl-mmengine==0.1
onedl-mmcv==2.3
# [libraries] first part
opencv-python-headless==4.0
# [libraries] second part
scipy==1.0; python_version < "3.11"
scipy==2.0; python_version >= "3.11"  # comment
"""


class FakeRunner:
    """Records commands; ``respond`` gives the exit status and output of each."""

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self.commands: list[str] = []
        self.envs: list[Mapping[str, str]] = []
        self.messages: list[str] = []
        self.respond: Callable[[str], tuple[int, str]] = lambda command: (0, '')

    def say(self, message: str) -> None:
        self.messages.append(message)

    def capture(
        self, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        self.commands.append(' '.join(command))
        self.envs.append(env or {})
        return self.respond(self.commands[-1])

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        code, output = self.capture(command, env)
        if code:
            raise InstallError(output, 'remedy')


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / '.venv').mkdir()
    (tmp_path / 'requirements.txt').write_text(REQUIREMENTS)
    (tmp_path / 'pyproject.toml').write_text('[project]\nname = "vitdown"\n')
    return tmp_path


def make_context(checkout: Path, **environ: str) -> steps.Context:
    groups = requirements.read_groups(checkout / 'requirements.txt')
    environ = {'PATH': '/usr/bin:/bin', 'CXX': 'c++', **environ}
    runner = FakeRunner(checkout / '.venv' / 'install.log')
    return steps.Context(checkout, checkout / '.venv', groups, environ, runner)


def names_to_do(context: steps.Context, done: dict[str, str], python: str = '3.12.1') -> list[str]:
    return [step.name for step in steps.pending(steps.plan(context, python), done)]


def all_done(context: steps.Context) -> dict[str, str]:
    return {step.name: step.key for step in steps.plan(context, '3.12.1')}


class TestRequirements:
    def test_headings_split_the_file_and_may_repeat(self, checkout: Path) -> None:
        groups = requirements.read_groups(checkout / 'requirements.txt')
        assert groups == {
            'build': ['ninja==1.0'],
            'torch': ['torch==2.0'],
            'mmcv': ['onedl-mmengine==0.1', 'onedl-mmcv==2.3'],
            'libraries': [
                'opencv-python-headless==4.0',
                'scipy==1.0; python_version < "3.11"',
                'scipy==2.0; python_version >= "3.11"',
            ],
        }

    @pytest.mark.parametrize(
        ('text', 'message'),
        [
            ('numpy==1\n', r'line 1: "numpy==1" stands before the first group'),
            ('# [build] x\nnumpy>=1\n', r'line 2: "numpy>=1" has no exact version'),
            ('# [tools] x\nnumpy==1\n', r'line 1: unknown group \[tools\]'),
            ('# [build] x\nnumpy==1\n', r'no requirements in group \[torch\]'),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / 'requirements.txt'
        path.write_text(text)
        with pytest.raises(InstallError, match=message):
            requirements.read_groups(path)

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InstallError, match=r'requirements\.txt is missing'):
            requirements.read_groups(tmp_path / 'requirements.txt')

    def test_pick_compares_normal_names(self) -> None:
        lines = ['OneDL_mmcv==1', 'onedl-mmcv-lite==1', 'onedl.mmcv==2; python_version < "3.11"']
        assert requirements.pick(lines, 'onedl-mmcv') == [lines[0], lines[2]]

    def test_pins_cover_every_dependency_of_the_project(self) -> None:
        project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
        extras = project['optional-dependencies']
        wanted = [*project['dependencies'], *extras['all'], *extras['test']]
        wanted += [*extras['det'], *extras['timm'], *extras['metric-learning']]
        groups = requirements.read_groups(ROOT / 'requirements.txt')
        pins: dict[str, list[str]] = {}
        for pin in map(Requirement, sum(groups.values(), [])):
            (specifier,) = pin.specifier
            pins.setdefault(requirements.project_name(pin.name), []).append(specifier.version)
        for dependency in map(Requirement, wanted):
            if dependency.name == 'vitdown':
                continue
            versions = pins.get(requirements.project_name(dependency.name), [])
            assert versions, f'{dependency.name} is not pinned in requirements.txt'
            outside = [version for version in versions if version not in dependency.specifier]
            assert not outside, f'{dependency}: the pins {outside} are outside its range'

    def test_pins_are_the_versions_of_this_environment(self) -> None:
        groups = requirements.read_groups(ROOT / 'requirements.txt')
        pins = [Requirement(line) for line in sum(groups.values(), [])]
        applicable = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
        assert len({requirements.project_name(pin.name) for pin in applicable}) == len(applicable)
        for pin in applicable:
            installed = importlib.metadata.version(pin.name)
            assert installed in pin.specifier, f'{pin} is pinned, {installed} is installed'


class TestPlan:
    def test_order_puts_torch_before_what_is_compiled_against_it(self, checkout: Path) -> None:
        context = make_context(checkout)
        order = [step.name for step in steps.plan(context, '3.12.1')]
        assert order == ['build', 'torch', 'mmcv', 'libraries', 'project', 'verify']

    def test_unchanged_inputs_leave_nothing_to_do(self, checkout: Path) -> None:
        assert names_to_do(make_context(checkout), all_done(make_context(checkout))) == []

    def test_new_environment_has_everything_to_do(self, checkout: Path) -> None:
        assert len(names_to_do(make_context(checkout), {})) == 6

    def test_changed_project_file_repeats_the_light_step_alone(self, checkout: Path) -> None:
        done = all_done(make_context(checkout))
        (checkout / 'pyproject.toml').write_text('[project]\nname = "other"\n')
        assert names_to_do(make_context(checkout), done) == ['project']

    @pytest.mark.parametrize(
        ('old', 'new', 'expected'),
        [
            ('scipy==2.0', 'scipy==2.1', ['libraries', 'verify']),
            ('onedl-mmcv==2.3', 'onedl-mmcv==2.4', ['mmcv', 'libraries', 'verify']),
            ('torch==2.0', 'torch==2.1', ['torch', 'mmcv', 'libraries', 'verify']),
            ('ninja==1.0', 'ninja==1.1', None),
            ('# comment', '# another comment', []),
        ],
    )
    def test_changed_pin_repeats_what_builds_on_it(
        self, checkout: Path, old: str, new: str, expected: list[str] | None
    ) -> None:
        done = all_done(make_context(checkout))
        (checkout / 'requirements.txt').write_text(REQUIREMENTS.replace(old, new))
        context = make_context(checkout)
        everything = [step.name for step in steps.plan(context, '3.12.1')]
        assert names_to_do(context, done) == (everything if expected is None else expected)

    def test_other_python_repeats_everything(self, checkout: Path) -> None:
        context = make_context(checkout)
        assert len(names_to_do(context, all_done(context), python='3.13.0')) == 6

    def test_other_torch_index_reinstalls_torch(self, checkout: Path) -> None:
        context = make_context(checkout)
        steps.execute(context, steps.plan(context, '3.12.1'))
        other = dataclasses.replace(context, torch_index='file:///wheels')
        done = state.read(context.venv)
        assert names_to_do(other, done) == ['torch', 'mmcv', 'libraries', 'verify']
        steps.install_torch(other)
        assert context.runner.commands[-1].endswith(
            '--index-url file:///wheels --force-reinstall torch==2.0'
        )

    def test_torch_index_is_remembered(
        self, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(steps, 'venv_python_version', lambda venv: '3.12.1')
        context = dataclasses.replace(make_context(checkout), torch_index='file:///wheels')
        steps.execute(context, steps.plan(context, '3.12.1'))
        assert '--index-url file:///wheels torch==2.0' in context.runner.commands[1]
        steps.install(checkout, {'PATH': ''})
        assert capsys.readouterr().out.startswith('The environment is ready: ')

    def test_moved_checkout_repeats_the_light_step(self, checkout: Path) -> None:
        done = all_done(make_context(checkout))
        moved = checkout.rename(checkout.with_name('moved'))
        assert names_to_do(make_context(moved), done) == ['project']


class TestExecution:
    def test_failure_keeps_what_is_done_and_the_next_run_resumes(self, checkout: Path) -> None:
        context = make_context(checkout)
        plan = steps.plan(context, '3.12.1')
        context.runner.respond = lambda command: (int('onedl-mmcv==2.3' in command), 'no network')
        with pytest.raises(InstallError, match='no network'):
            steps.execute(context, plan)
        done = state.read(context.venv)
        assert [step.name for step in plan if step.name in done] == ['build', 'torch']

        resumed = make_context(checkout)
        steps.execute(resumed, plan)
        assert not any('torch==2.0' in command for command in resumed.runner.commands)
        assert any('onedl-mmcv==2.3' in command for command in resumed.runner.commands)
        assert resumed.runner.messages[:2] == [
            '[2/7] Installing build tools: done before',
            '[3/7] Installing PyTorch: done before',
        ]
        assert steps.pending(plan, state.read(resumed.venv)) == []

    def test_every_pip_command_is_constrained_by_the_pins(self, checkout: Path) -> None:
        context = make_context(checkout)
        steps.execute(context, steps.plan(context, '3.12.1'))
        commands = [command for command in context.runner.commands if 'pip install' in command]
        assert len(commands) == 5
        assert all(f'-c {checkout / "requirements.txt"}' in command for command in commands)

    def test_ready_environment_runs_nothing(
        self,
        checkout: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(steps, 'venv_python_version', lambda venv: '3.12.1')
        state.write(checkout / '.venv', all_done(make_context(checkout)))
        steps.install(checkout, {'PATH': ''})
        assert capsys.readouterr().out.startswith('The environment is ready: ')
        assert not (checkout / '.venv' / steps.LOG_NAME).exists()

    def test_failures_end_in_one_message(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert steps.run_installation(str(tmp_path)) == 1
        assert capsys.readouterr().err == (
            f'error: {tmp_path / "requirements.txt"} is missing\n'
            'remedy: restore it: git checkout -- requirements.txt\n'
        )

    @pytest.mark.parametrize('content', ['', '{"build": ', '[1]'])
    def test_damaged_state_counts_as_nothing_done(self, tmp_path: Path, content: str) -> None:
        (tmp_path / state.FILE_NAME).write_text(content)
        assert state.read(tmp_path) == {}

    def test_state_survives_a_round_trip(self, tmp_path: Path) -> None:
        state.write(tmp_path, {'build': 'x'})
        assert state.read(tmp_path) == {'build': 'x'}
        assert [path.name for path in tmp_path.iterdir()] == [state.FILE_NAME]


class TestMmcv:
    def test_compiles_against_the_installed_torch(self, checkout: Path) -> None:
        context = make_context(checkout, CFLAGS='-march=native', MAX_JOBS='3')
        steps.install_mmcv(context)
        (build,) = [i for i, c in enumerate(context.runner.commands) if 'onedl-mmcv==2.3' in c]
        assert '--no-build-isolation' in context.runner.commands[build]
        env = context.runner.envs[build]
        assert env['CFLAGS'] == '-march=native -g0 -O2'
        assert (env['CXXFLAGS'], env['MAX_JOBS'], env['CXX']) == ('-g0 -O2', '3', 'c++')
        assert 'CUDA_VISIBLE_DEVICES' not in env

    def test_gpu_without_cuda_toolkit_is_hidden_from_the_build(self, checkout: Path) -> None:
        context = make_context(checkout, CUDA_HOME=str(checkout / 'no-cuda'))
        context.runner.respond = lambda command: (
            0,
            'CUDA 13.0 True' if 'torch.version.cuda' in command else '',
        )
        env = steps.mmcv_build_env(context)
        assert (env['CUDA_VISIBLE_DEVICES'], env['FORCE_CUDA']) == ('', '0')
        assert 'CPU only: no CUDA toolkit (nvcc) found' in context.runner.messages[0]

    @pytest.mark.parametrize(
        ('code', 'output', 'expected'),
        [
            (1, 'ImportError: mmcv/_ext.so: undefined symbol: _ZN3c105Error', 'rebuild'),
            (1, "ModuleNotFoundError: No module named 'mmcv._ext'", 'rebuild'),
            (1, 'ImportError: libtorch_cpu.so: cannot open shared object file', 'rebuild'),
            (-11, '', 'rebuild'),
            (1, 'ImportError: libGL.so.1: cannot open shared object file', 'headless'),
            (1, "ModuleNotFoundError: No module named 'torch'", None),
        ],
    )
    def test_repair_fits_the_failure(self, code: int, output: str, expected: str | None) -> None:
        assert steps.find_repair(code, output) == expected

    def failing_until(self, context: steps.Context, repair: str | None, output: str) -> None:
        """Let the check of the operators fail until a command with ``repair`` has run."""

        def respond(command: str) -> tuple[int, str]:
            repaired = repair and any(repair in earlier for earlier in context.runner.commands)
            return (1, output) if 'verify.py' in command and not repaired else (0, '')

        context.runner.respond = respond

    def test_wheel_of_another_torch_is_compiled_anew(self, checkout: Path) -> None:
        context = make_context(checkout)
        self.failing_until(context, '--no-cache-dir', 'undefined symbol: _ZN3c105Error')
        steps.install_mmcv(context)
        *_, rebuild, check = context.runner.commands
        assert '--no-cache-dir --force-reinstall --no-deps onedl-mmcv==2.3' in rebuild
        assert check.endswith('verify.py operators')

    def test_opencv_without_windows_replaces_the_other(self, checkout: Path) -> None:
        context = make_context(checkout)
        self.failing_until(context, 'headless', 'ImportError: libGL.so.1: cannot open')
        steps.install_mmcv(context)
        assert '--no-deps opencv-python-headless==4.0' in context.runner.commands[-2]

    @pytest.mark.parametrize('output', ['undefined symbol: x', 'ZeroDivisionError: y'])
    def test_persistent_failure_is_reported(self, checkout: Path, output: str) -> None:
        context = make_context(checkout)
        self.failing_until(context, None, output)
        with pytest.raises(InstallError, match=f'operators of mmcv do not work: {output}'):
            steps.install_mmcv(context)

    @pytest.mark.parametrize(
        ('nvcc', 'expected'),
        [
            (None, 'no CUDA toolkit (nvcc) found'),
            ('release 12.8, V12.8.61', 'nvcc is of CUDA 12.8, torch of CUDA 13.0'),
            ('nonsense', 'nvcc does not tell its version'),
            ('Cuda compilation tools, release 13.1, V13.1.80', None),
        ],
    )
    def test_cuda_operators_need_a_fitting_toolkit(
        self, nvcc: str | None, expected: str | None
    ) -> None:
        assert checks.cuda_obstacle('13.0', nvcc) == expected


class TestChecks:
    def test_full_disk_is_found_before_the_download(
        self, checkout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = type('Usage', (), {'free': 3_500_000_000})
        monkeypatch.setattr(checks.shutil, 'disk_usage', lambda folder: usage)
        context = make_context(checkout)
        with pytest.raises(InstallError, match=r'3\.5 GB of free disk space.* needs 12 GB'):
            steps.check_machine(context, steps.plan(context, '3.12.1'))

    def test_missing_compiler_is_named_with_its_package(self) -> None:
        with pytest.raises(InstallError, match=r'no C\+\+ compiler found(.|\n)*apt install g\+\+'):
            checks.find_compilers({'PATH': '/nowhere'})

    def test_compilers_of_the_user_are_kept(self) -> None:
        environ = {'PATH': '/nowhere', 'CC': 'icx', 'CXX': 'icpx'}
        assert checks.find_compilers(environ) == {'CC': 'icx', 'CXX': 'icpx'}

    def test_working_compiler_passes(self) -> None:
        cxx = checks.find_compilers({'PATH': '/usr/local/bin:/usr/bin:/bin'})['CXX']
        checks.check_compiler(cxx)

    @pytest.mark.parametrize(
        ('stderr', 'message'),
        [
            ('fatal error: Python.h: No such file or directory', 'headers of Python'),
            ("error: unrecognized option '-std=c++17'", r'can not compile C\+\+17: error: unrec'),
        ],
    )
    def test_unfit_compiler_is_reported(self, tmp_path: Path, stderr: str, message: str) -> None:
        compiler = tmp_path / 'c++'
        compiler.write_text(f'#!/bin/sh\necho "{stderr}" >&2\nexit 1\n')
        compiler.chmod(0o755)
        with pytest.raises(InstallError, match=message):
            checks.check_compiler(str(compiler))

    def test_compiler_that_does_not_run_is_reported(self) -> None:
        with pytest.raises(InstallError, match=r'/no/such/c\+\+ does not run'):
            checks.check_compiler('/no/such/c++')

    def test_missing_venv_module_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks.importlib.util, 'find_spec', lambda name: None)
        with pytest.raises(InstallError, match=r'apt install python3\.\d+-venv'):
            checks.check_venv_module()

    def test_little_memory_limits_the_number_of_compilers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = {'SC_PAGE_SIZE': 4096, 'SC_PHYS_PAGES': 2_000_000_000 // 4096}
        monkeypatch.setattr(checks.os, 'sysconf', memory.__getitem__)
        assert checks.parallel_compilers({}) == 1
        assert checks.parallel_compilers({'MAX_JOBS': '7'}) == 7


class TestEnvironment:
    def test_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / 'thesis.tex').write_text('')
        with pytest.raises(InstallError, match='is no virtual environment'):
            steps.ensure_venv(tmp_path, print)
        assert (tmp_path / 'thesis.tex').exists()

    def test_environment_whose_python_is_gone_is_created_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        venv = tmp_path / '.venv'
        (venv / 'bin').mkdir(parents=True)
        (venv / 'bin' / 'python').symlink_to('/no/such/python')
        (venv / 'pyvenv.cfg').write_text('home = /no/such\n')
        (venv / state.FILE_NAME).write_text(json.dumps({'build': 'x'}))
        monkeypatch.setattr(checks, 'FULL_INSTALLATION_GB', 0.0)
        messages: list[str] = []
        version = steps.ensure_venv(venv, messages.append)
        assert version.startswith(f'{sys.version_info.major}.{sys.version_info.minor}.')
        assert 'is gone or incomplete' in messages[0]
        assert state.read(venv) == {}
        assert steps.ensure_venv(venv, messages.append) == version
        assert len(messages) == 2

    def test_commands_see_nothing_outside_the_environment(self, tmp_path: Path) -> None:
        environ = {'PATH': '/bin', 'PYTHONPATH': '/x', 'PIP_TARGET': '/y', 'PIP_USER': '1'}
        env = steps.command_environment(environ, tmp_path)
        assert 'PYTHONPATH' not in env
        assert 'PIP_TARGET' not in env
        assert (env['PATH'], env['PIP_USER'], env['TMPDIR']) == ('/bin', '0', str(tmp_path))


class TestRunner:
    def make(self, tmp_path: Path, **options: object) -> tuple[Runner, io.StringIO]:
        stream = io.StringIO()
        return Runner(tmp_path / 'install.log', {}, stream, **options), stream

    def test_output_goes_to_the_log(self, tmp_path: Path) -> None:
        runner, stream = self.make(tmp_path)
        runner.run([sys.executable, '-c', 'import os; print(os.environ["X"])'], env={'X': 'hello'})
        assert runner.capture([sys.executable, '-c', 'print("again")']) == (0, 'again\n')
        assert 'hello\n' in runner.log_path.read_text()
        assert stream.getvalue() == ''

    def test_failure_shows_cause_remedy_log_and_its_end(self, tmp_path: Path) -> None:
        runner, _ = self.make(tmp_path)
        script = 'print("first"); print("x\\n" * 20, "OSError: No space left on device"); exit(3)'
        with pytest.raises(InstallError) as caught:
            runner.run([sys.executable, '-c', script])
        message = str(caught.value)
        assert 'error: the disk is full\nremedy: free some space' in message
        assert f'log: {runner.log_path}' in message
        assert 'No space left on device' in message
        assert 'first' not in message

    def test_unknown_failure_names_the_command(self, tmp_path: Path) -> None:
        runner, _ = self.make(tmp_path)
        with pytest.raises(InstallError, match=r'-c exit\(3\)" failed with code 3'):
            runner.run([sys.executable, '-c', 'exit(3)'])

    def test_missing_program_is_reported(self, tmp_path: Path) -> None:
        runner, _ = self.make(tmp_path)
        with pytest.raises(InstallError, match='/no/such/program does not run'):
            runner.run(['/no/such/program'])

    def test_long_commands_show_a_sign_of_life(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class SlowProcess:
            def __init__(self, command: list[str], stdout: io.TextIOBase, **_: object) -> None:
                stdout.write('[12/95] c++ -o nms.o\n')
                stdout.flush()
                self.waits = 0

            def wait(self, timeout: float | None = None) -> int:
                self.waits += 1
                if self.waits < 3:
                    raise subprocess.TimeoutExpired('slow', timeout)
                return 0

        runner, stream = self.make(tmp_path, interval=30.0)
        monkeypatch.setattr(subprocess, 'Popen', SlowProcess)
        runner.run(['slow'])
        assert stream.getvalue().splitlines() == ['      0:00 compiled 12 of 95 files'] * 2

    def test_last_activity_is_short(self, tmp_path: Path) -> None:
        log = tmp_path / 'log'
        log.write_text('first\n' + 'x' * 200 + '\n\n')
        assert last_activity(log) == 'x' * 64
        log.write_text('')
        assert last_activity(log) == ''

    def test_durations_are_minutes_and_seconds(self) -> None:
        assert [format_seconds(value) for value in (0.4, 75.2, 3600)] == ['0:00', '1:15', '60:00']


@pytest.mark.parametrize(
    ('output', 'cause'),
    [
        ('Temporary failure in name resolution', 'the package index could not be reached'),
        ('ReadTimeoutError: Read timed out. ConnectTimeout', 'the package index could not'),
        ('ERROR: No matching distribution found for torch==2.11.0', 'has no torch==2.11.0'),
        ('THESE PACKAGES DO NOT MATCH THE HASHES', 'a downloaded file is damaged'),
        ('fatal error: Python.h: No such file', 'the headers of Python are missing'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'out of memory'),
        ("error: command '/usr/bin/c++' failed with exit code 1", 'compiling failed'),
        ('SSLError(CERTIFICATE_VERIFY_FAILED) Max retries exceeded', 'certificate'),
    ],
)
def test_known_causes_are_recognised(output: str, cause: str) -> None:
    assert cause in explain(output)[0]


def test_unknown_output_has_no_cause() -> None:
    assert explain('Segmentation fault') is None


class TestEntry:
    @pytest.mark.parametrize(
        ('version', 'supported'),
        [((3, 9), False), ((3, 10), True), ((3, 13), True), ((3, 14), False), ((2, 7), False)],
    )
    def test_supported_versions(self, version: tuple[int, int], supported: bool) -> None:
        assert entry.is_supported(version) is supported

    def test_messages_tell_the_range(self) -> None:
        assert 'Python 3.9 is too old: vitdown needs Python 3.10 to 3.13' in (
            entry.unsupported_message((3, 9))
        )
        assert 'Python 3.14 is too new' in entry.unsupported_message((3, 14))

    def test_first_working_interpreter_is_taken(self) -> None:
        assert entry.find_supported_python(['/no/such/python', sys.executable]) == sys.executable
        assert entry.find_supported_python(['/no/such/python']) is None

    def test_range_fits_the_project(self) -> None:
        project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
        allowed = SpecifierSet(project['requires-python'])
        assert '.'.join(map(str, entry.OLDEST)) in allowed
        assert f'{entry.OLDEST[0]}.{entry.OLDEST[1] - 1}' not in allowed
