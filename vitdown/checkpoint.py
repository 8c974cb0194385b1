"""Reading, checking and writing checkpoint files.

Weights are read with ``weights_only=True`` (or as safetensors), so a file of unknown origin can't
run code; files are written so that a kill at any moment leaves the old or the new file, never a
torn one.
"""

import logging
import os
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler import OneCycleParamScheduler
from mmengine.runner.checkpoint import CheckpointLoader
from numpy import dtype, ndarray
from numpy.dtypes import Float32DType, Float64DType, Int64DType
from safetensors.torch import load_file
from torch import Tensor, nn

from vitdown.files import write_atomically

try:
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:  # numpy < 2
    from numpy.core.multiarray import _reconstruct, scalar  # type: ignore[no-redef]


class _OneCycle:
    """Stands in for OneCycleParamScheduler, whose state holds one of its functions."""

    _annealing_cos = staticmethod(OneCycleParamScheduler._annealing_cos)
    _annealing_linear = staticmethod(OneCycleParamScheduler._annealing_linear)


def _getattr(owner: type, name: str) -> Callable:
    """Stands in for ``getattr``, by which pickled objects refer to functions of classes."""
    public = owner is HistoryBuffer and not name.startswith('_')
    if public or (owner is _OneCycle and name in vars(_OneCycle) and not name.startswith('__')):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported attribute {name} of {owner}')


# MMEngine checkpoints keep the log history and schedulers, DeiT's (and what is built on it) the
# command line: harmless types that torch does not list itself.
_SAFE_TYPES = [
    Namespace,
    HistoryBuffer,
    ndarray,
    dtype,
    Float32DType,
    Float64DType,
    Int64DType,
    _reconstruct,
    scalar,
    (_getattr, 'builtins.getattr'),
    (_OneCycle, 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'),
    # The settings that code bases built on Swin's save along
    (OrderedDict, 'yacs.config.CfgNode'),
]


__all__ = [
    'CheckpointError',
    'check_fit',
    'drop_unloadable',
    'find_resumable_checkpoint',
    'load_checkpoint_file',
    'unwrap_state_dict',
    'write_atomically',
]


class CheckpointError(RuntimeError):
    """A checkpoint file that can't be read or doesn't fit the model."""


def load_checkpoint_file(path: str | os.PathLike, map_location: str = 'cpu') -> dict:
    """Read a ``.pth`` or ``.safetensors`` file without executing code from it.

    Args:
        path (str): The file.
        map_location (str): Device of the tensors. Defaults to ``'cpu'``.

    Returns:
        dict: The file's content, a state dict or a dict around one.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or holds objects other than weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'Checkpoint {path} does not exist')
    try:
        if path.suffix == '.safetensors':
            return load_file(path, device=str(map_location))
        with torch.serialization.safe_globals(_SAFE_TYPES):
            content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch meets damaged files with exceptions of many types
        if isinstance(error, pickle.UnpicklingError) and 'Unsupported' in str(error):
            raise CheckpointError(
                f'Checkpoint {path} holds Python objects besides weights and is not loaded, '
                'because unpickling them could run code. If you trust its origin, load it with '
                'torch.load(..., weights_only=False) and save its state dict. '
                f'({_first_line_on_global(error)})'
            ) from None
        raise CheckpointError(
            f'Checkpoint {path} is damaged or not a checkpoint '
            f'({type(error).__name__}: {str(error).splitlines()[0] if str(error) else "empty"}); '
            'use another file'
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f'Checkpoint {path} holds a {type(content).__name__}, expected a state dict'
        )
    return content


def _first_line_on_global(error: pickle.UnpicklingError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if 'Unsupported' in line]
    return lines[0]


@CheckpointLoader.register_scheme(prefixes='', force=True)
def _load_from_local(filename: str, map_location: str = 'cpu') -> dict:
    return load_checkpoint_file(filename, map_location or 'cpu')


def unwrap_state_dict(checkpoint: Mapping) -> dict[str, Tensor]:
    """The state dict inside a checkpoint (``state_dict``, ``model`` ...), without ``module.``.

    Raises:
        CheckpointError: If there are no tensors.
    """
    for key in ('state_dict', 'model', 'model_state_dict', 'teacher'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    state_dict = {k: v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not state_dict:
        raise CheckpointError(
            f'No weights in the checkpoint, only the entries {sorted(map(str, checkpoint))}'
        )
    if all(key.startswith('module.') for key in state_dict):
        state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    return state_dict


def check_fit(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    name: str = 'checkpoint',
    ignore: Iterable[str] = (),
) -> None:
    """Raise unless a state dict fits a model.

    Args:
        model (nn.Module): The model to load into.
        state_dict (Mapping): Names and weights; position embeddings may have another length,
            since models resize them on load; so may factors of tokens.
        name (str): What to call the checkpoint in the message.
        ignore (Iterable[str]): Regular expressions of names that may be missing, unexpected or of
            another shape.

    Raises:
        CheckpointError: Listing what is missing, unexpected and of another shape.
    """
    patterns = [re.compile(pattern) for pattern in ignore]

    def matters(key: str) -> bool:
        return not key.endswith('num_batches_tracked') and not any(p.search(key) for p in patterns)

    own = model.state_dict()
    optional, resized = _listed(model, 'optional_state'), _listed(model, 'resized_state')
    known = {*own, *_listed(model, 'surplus_state')}
    missing = [key for key in own if key not in {*state_dict, *optional} and matters(key)]
    unexpected = [key for key in state_dict if key not in known and matters(key)]
    reshaped = [
        f'{key} {tuple(state_dict[key].shape)} instead of {tuple(own[key].shape)}'
        for key in own
        if key in state_dict
        and matters(key)
        and key not in resized
        and not _same_shape(key, own[key], state_dict[key])
    ]
    problems = [
        f'{what}: {", ".join(keys[:5])}' + (f' and {len(keys) - 5} more' if len(keys) > 5 else '')
        for what, keys in (
            ('missing', missing),
            ('unexpected', unexpected),
            ('of another shape', reshaped),
        )
        if keys
    ]
    if problems:
        advice = (
            'Is it a checkpoint of this config? Weights of other code bases need '
            'tools/model_converters/convert.py.'
        )
        if any(key.startswith('distill_losses.') for key in unexpected):
            advice = (
                "It is a DistilledClassifier's: tools/model_converters/convert.py cls_kd FILE OUT "
                'writes its student alone.'
            )
        raise CheckpointError(
            f'{name} does not fit {type(model).__name__}: {"; ".join(problems)}. {advice}'
        )


def _listed(model: nn.Module, attribute: str) -> set[str]:
    """Full names of the weights that modules list under an attribute."""
    return {
        f'{prefix}.{name}' if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, attribute, ())
    }


def _same_shape(key: str, own: Tensor, other: Tensor) -> bool:
    if key.rpartition('.')[2] in ('pos_embed', 'token_scale'):
        return own.shape[-1] == other.shape[-1]
    return own.shape == other.shape


def drop_unloadable(
    model: nn.Module, state_dict: dict[str, Tensor], patterns: Iterable[str]
) -> list[str]:
    """Remove entries that match ``patterns`` and whose shape differs from the model's, in place.

    Returns:
        list[str]: The names removed.
    """
    own = model.state_dict()
    dropped = [
        key
        for key, value in state_dict.items()
        if any(re.search(pattern, key) for pattern in patterns)
        and key in own
        and not _same_shape(key, own[key], value)
    ]
    for key in dropped:
        del state_dict[key]
    return dropped


def find_resumable_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """Newest checkpoint of a work dir that loads: ``last_checkpoint``'s, else the latest file.

    Returns:
        str | None: Path, or None if there is nothing to resume.

    Raises:
        CheckpointError: If there are checkpoints, but none that loads.
    """
    work_dir = Path(work_dir)
    candidates = sorted(
        (p for pattern in ('epoch_*.pth', 'iter_*.pth') for p in work_dir.glob(pattern)),
        key=lambda p: int(re.sub(r'\D', '', p.stem) or 0),
        reverse=True,
    )
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file() and (target := pointer.read_text().strip()):
        candidates.insert(0, Path(target))
    problems = []
    for candidate in filter(Path.is_file, dict.fromkeys(candidates)):
        try:
            load_checkpoint_file(candidate)
        except CheckpointError as error:
            problems.append(str(error))
            print_log(f'Not resumed: {error}', 'current', logging.WARNING)
            continue
        return str(candidate)
    if problems:
        raise CheckpointError(
            f'Nothing in {work_dir} can be resumed. {problems[0]}; to train anew, move the '
            'checkpoints away.'
        )
    return None
