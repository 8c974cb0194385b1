"""What the command line tools share: reading configs, overriding them, reporting errors."""

import ast
import atexit
import difflib
import logging
import os
import re
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

import vitdown
import vitdown.registry  # lets other packages find vitdown's types by their scope
from vitdown.checkpoint import CheckpointError
from vitdown.config import ConfigError, read_config
from vitdown.datasets.transforms import check_key_arguments, check_key_sources


class _OverrideAction(DictAction):
    """MMEngine's KEY=VALUE arguments, with an error for what is none, and with dicts."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'{option_string} takes KEY=VALUE, got {wrong[0]!r}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except _DictError as error:
            parser.error(f'{option_string}: {error}')

    @staticmethod
    def _parse_iterable(val: str) -> object:
        if re.search(r'\bdict\(|\{', val):
            return _parse_dicts(val)
        return DictAction._parse_iterable(val)


class _DictError(ValueError):
    """A value with dicts that is no Python."""


def _parse_dicts(text: str) -> object:
    """Value of a Python literal in which ``dict(a=1)`` stands for ``{'a': 1}``."""

    class Literal(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            named = all(keyword.arg for keyword in node.keywords)
            if getattr(node.func, 'id', None) != 'dict' or node.args or not named:
                return node
            keys: list[ast.expr | None] = [ast.Constant(keyword.arg) for keyword in node.keywords]
            return ast.Dict(keys, [keyword.value for keyword in node.keywords])

    try:
        return ast.literal_eval(Literal().visit(ast.parse(text.strip(), mode='eval')))
    except (SyntaxError, ValueError):
        raise _DictError(
            f'{text!r} is no Python value; write dicts as "dict(type=\'SMMixHook\')" within quotes '
            'of the shell'
        ) from None


def add_config_arguments(parser: ArgumentParser) -> None:
    """Arguments that every tool working on a config takes."""
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_OverrideAction,
        metavar='KEY=VALUE',
        help='override entries of the config, e.g. train_cfg.max_epochs=60 '
        'model.backbone.drop_path_rate=0.2 randomness.seed=1; lists as key="[a,b]", dicts as '
        'key="dict(type=\'SMMixHook\')"',
    )


def add_launcher_arguments(parser: ArgumentParser) -> None:
    """Arguments of distributed launchers."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(path: str, options: Mapping | None = None, work_dir: str | None = None) -> Config:
    """Read a config file and apply overrides.

    Args:
        path (str): Config file.
        options (Mapping, optional): Dotted keys and values, as from ``--cfg-options``.
        work_dir (str, optional): Defaults to the config's, else ``work_dirs/<config name>``.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If the file is no valid config, or an option names a key whose parent has no
            such entry or has no such kind of value.
        KeyUnavailableError: If a ``ConvUnlearnable`` has an argument that may be its key.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'Config {path} does not exist')
    cfg = read_config(path)
    if options:
        options = {key: _checked_option(cfg, key, value) for key, value in options.items()}
        try:
            cfg.merge_from_dict(options)
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f'--cfg-options do not fit the config: {error.args[0]}') from error
    check_key_arguments(cfg.to_dict())
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(path).stem)
    if Path(cfg.work_dir).is_file():
        raise ConfigError(f'The work dir {cfg.work_dir} is a file; name a folder')
    init_default_scope(cfg.get('default_scope', 'vitdown'))
    return cfg


# Entries that configs may leave out, since they have a default
_OPTIONAL = {
    'work_dir', 'load_from', 'resume', 'custom_hooks', 'auto_scale_lr', 'randomness', 'launcher',
}  # fmt: skip


def _checked_option(cfg: Config, key: str, value: Any) -> Any:
    """The value to merge: dicts replace what is none.

    A top-level key must exist; so must every dict on the way to a deeper one.
    """
    first, *rest = key.split('.')
    if first not in cfg:
        if first in _OPTIONAL:
            return value
        raise ConfigError(f'--cfg-options {key}: the config has no {first!r}{_hint(first, cfg)}')
    node, done = cfg[first], first
    for part in rest:
        if isinstance(node, list):
            return value  # MMEngine merges by number
        if not isinstance(node, Mapping):
            raise ConfigError(
                f'--cfg-options {key}: {done} is {node!r}, no dict; replace it as a whole, '
                f'{done}="dict({part}=...)"'
            )
        if part not in node:
            if f'{done}.{part}' == key:
                return value
            raise ConfigError(f'--cfg-options {key}: {done} has no {part!r}{_hint(part, node)}')
        node = node[part]
        done += f'.{part}'
    if isinstance(value, dict) and not isinstance(node, (Mapping, list)):
        return {**value, '_delete_': True}
    is_name = isinstance(value, str) and not value.endswith('.py') and '::' not in value
    if is_name and isinstance(node, Mapping) and 'type' in node:
        raise ConfigError(
            f'--cfg-options {key}={value}: {key} is a dict; to replace it, '
            f'{key}="dict(_delete_=True, type={value!r})"'
        )
    return value


def _hint(key: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(choices), n=1)
    return f'; did you mean {close[0]!r}?' if close else f' (it has {", ".join(sorted(choices))})'


def build_runner(cfg: Config) -> Runner:
    """Build the config's runner, MMEngine's default unless ``runner_type`` names another.

    Distributed runs work without GPUs too: with gloo instead of the config's backend.

    Raises:
        ConfigError: If torchrun is to start the processes and has not.
        KeyUnavailableError: If a ``ConvUnlearnable`` names no usable key.
    """
    # The runner writes the config into its folder and the log.
    check_key_sources(cfg.to_dict())
    if cfg.get('launcher', 'none') == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for processes that torchrun starts; use tools/dist_train.sh or '
            'tools/dist_test.sh'
        )
    if cfg.get('launcher', 'none') == 'pytorch' and not torch.cuda.is_available():
        # MMEngine's set-up of the torch launcher takes a GPU for granted.
        torch.distributed.init_process_group('gloo')
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get('find_unused_parameters', False),
            ),
        )
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def evaluate(cfg: Config, checkpoint: str | None = None, hooks: Sequence[dict] = ()) -> dict:
    """Evaluate a config's model, with the weights of a checkpoint or as initialised.

    Args:
        cfg (Config): Left as it is.
        checkpoint (str, optional): None for the untrained model.
        hooks (Sequence[dict]): Further hooks.

    Returns:
        dict: The metrics of the config's test evaluator.
    """
    cfg = Config(cfg.to_dict())
    cfg.load_from, cfg.resume = checkpoint, False
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *hooks]
    runner = build_runner(cfg)
    if checkpoint is None:
        runner.model.init_weights()
    return runner.test()


def run_tool(main: Callable[[], None]) -> None:
    """Call a tool's main function; mistakes in its input end in one message, not a traceback.

    Set ``VITDOWN_TRACEBACK=1`` to see the traceback.
    """
    try:
        main()
    except Exception as error:
        if os.environ.get('VITDOWN_TRACEBACK') or not _is_input_error(error):
            raise
        print(f'error: {_message(error)}', file=sys.stderr)
        sys.exit(2)
    else:
        if torch.distributed.is_initialized():
            _leave_group()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _leave_group() -> None:
    """End a process of a group after its work is done.

    Without Python's tidying up: now and then gloo's threads abort a process in it, and the launcher
    then reports a failure of a run that is complete.
    """
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _message(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    # From a data loading worker, the message comes with the worker's traceback.
    return text.strip().splitlines()[-1] if text.startswith('Caught ') else text


def _is_input_error(error: Exception) -> bool:
    """Whether the error is the user's to mend: raised on purpose, or a wrong argument."""
    if isinstance(error, (ConfigError, FileNotFoundError, NotADirectoryError, PermissionError)):
        return True
    if isinstance(error, TypeError) and '__init__() ' in str(error) and 'argument' in str(error):
        # A key of a config that the class it configures doesn't take
        return True
    if not isinstance(error, (ValueError, TypeError, KeyError, OSError, CheckpointError)):
        return False
    if str(error).startswith('Caught '):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (frame.line or '').startswith('raise ') and (
        Path(frame.filename).is_relative_to(Path(vitdown.__file__).parent)
        or 'registry' in str(error)
    )
