from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule

from vitdown.checkpoint import CheckpointError, check_fit, load_checkpoint_file, unwrap_state_dict
from vitdown.converters import OPTIONAL_WEIGHTS, convert_state_dict


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
            :data:`vitdown.converters.CONVERTERS`; None for vitdown's and mmpretrain's own names.
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
        state_dict = convert_state_dict(state_dict, source)
        optional = [*optional, *OPTIONAL_WEIGHTS.get(source, ())]
    if prefix and any(key.startswith(prefix) for key in state_dict):
        state_dict = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
    # Side information belongs to the target's cameras: never part of a pretrained backbone.
    check_fit(
        module, state_dict, f'Pretrained checkpoint {checkpoint}', ignore=[r'^sie\.', *optional]
    )
    state_dict.pop('sie.embed', None)
    module.load_state_dict(state_dict, strict=False)
    print_log(f'Loaded {len(state_dict)} pretrained weights from {checkpoint}', logger='current')
