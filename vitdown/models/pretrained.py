from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

from vitdown.checkpoint import CheckpointError, check_fit, load_checkpoint_file, unwrap_state_dict
from vitdown.converters import CONVERTERS, OPTIONAL_WEIGHTS, convert_state_dict


def load_pretrained(
    module: BaseModule,
    checkpoint: str,
    source: str | None = None,
    prefix: str | None = 'backbone.',
    map_location: str = 'cpu',
    optional: Sequence[str] = (),
) -> None:
    """Initialise a backbone from a checkpoint file and fail where the two do not fit.

    Args:
        module (BaseModule): The backbone.
        checkpoint (str): Path of a ``.pth`` or ``.safetensors`` file, or the URL of a ``.pth``.
        source (str, optional): Code base the file comes from, a key of
            :data:`vitdown.converters.CONVERTERS`; None for vitdown's and mmpretrain's own names,
            which are understood with any source.
        prefix (str, optional): Part of the model to take. If no name in the file starts with it,
            the file is taken to hold the backbone alone. Defaults to ``'backbone.'``.
        map_location (str): Where to read the tensors to. Defaults to ``'cpu'``.
        optional (Sequence[str]): Regular expressions of names that may be missing or unexpected.
            What is missing stays as it is, what is unexpected is left out.

    Raises:
        CheckpointError: If weights are missing, unexpected or of another shape.
    """
    if checkpoint.startswith(('http://', 'https://')):
        try:
            content = torch.hub.load_state_dict_from_url(
                checkpoint, map_location=map_location, weights_only=True
            )
        except OSError as error:
            raise CheckpointError(
                f'Cannot download {checkpoint} ({error}). Download it elsewhere and set '
                'model.backbone.init_cfg.checkpoint=FILE, or train from scratch with '
                'model.backbone.init_cfg=None'
            ) from None
    else:
        content = load_checkpoint_file(checkpoint, map_location)
    state_dict = unwrap_state_dict(content)
    if source is not None:
        state_dict = _convert(state_dict, source, module, prefix)
        optional = [*optional, *OPTIONAL_WEIGHTS.get(source, ())]
    state_dict = _part(state_dict, prefix)
    # Side information belongs to the target's cameras: never part of a pretrained backbone.
    check_fit(
        module, state_dict, f'Pretrained checkpoint {checkpoint}', ignore=[r'^sie\.', *optional]
    )
    state_dict.pop('sie.embed', None)
    module.load_state_dict(state_dict, strict=False)
    print_log(f'Loaded {len(state_dict)} pretrained weights from {checkpoint}', logger='current')


def _part(state_dict: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """The weights whose names start with the prefix, without it; all of them if none does."""
    if not prefix or not any(key.startswith(prefix) for key in state_dict):
        return dict(state_dict)
    return {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }


def _convert(
    state_dict: dict[str, Tensor], source: str, module: BaseModule, prefix: str | None
) -> dict[str, Tensor]:
    """Rename the weights of a source, unless they have the module's names already."""
    try:
        return convert_state_dict(state_dict, source)
    except ValueError:
        own, names = module.state_dict().keys(), _part(state_dict, prefix).keys()
        # Most of them, so that those of another depth are compared by their names.
        if source in CONVERTERS and 2 * len(own & names) > min(len(own), len(names)):
            return state_dict
        raise
