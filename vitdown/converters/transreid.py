import re
from collections.abc import Mapping

from torch import Tensor

from .renaming import NamePair, rename
from .timm import BACKBONE_PAIRS, LAYER_PAIRS, with_prefix

_BACKBONE: list[NamePair] = [
    *with_prefix(BACKBONE_PAIRS, 'base.', 'backbone.'),
    ('base.sie_embed', 'backbone.sie.embed'),
]
_BASELINE: list[NamePair] = [
    *_BACKBONE,
    ('bottleneck.{p}', 'head.bnneck.bn.{p}'),
    ('classifier.{p}', 'head.bnneck.classifier.{p}'),
]


def _jpm_pairs(num_layers: int) -> list[NamePair]:
    # b1, the global branch, is a copy of the last layer and norm that TransReID trains in their
    # place; here it is the backbone's own.
    last = f'backbone.layers.{num_layers - 1}.'
    return [
        *with_prefix(LAYER_PAIRS, 'b1.0.', last),
        ('b1.1.{p}', 'backbone.ln1.{p}'),
        *with_prefix(LAYER_PAIRS, 'b2.0.', 'head.local_layer.'),
        ('b2.1.{p}', 'head.local_norm.{p}'),
        ('bottleneck_{i}.{p}', 'head.bnnecks.{i}.bn.{p}'),
        ('classifier_{i}.{p}', 'head.bnnecks.{i}.classifier.{p}'),
        ('bottleneck.{p}', 'head.bnnecks.0.bn.{p}'),
        ('classifier.{p}', 'head.bnnecks.0.classifier.{p}'),
        *_BACKBONE,
    ]


def convert_transreid(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TransReID's baseline and JPM checkpoints to ``ReIdentifier`` with BNNeck or JPM head.

    The 1000-way classifier that TransReID carries along unused is dropped; with JPM, so are the
    unused last layer and norm of its backbone.
    """
    kept = {key: value for key, value in state_dict.items() if not key.startswith('base.fc.')}
    if not any(key.startswith('b1.') for key in kept):
        return rename(kept, _BASELINE, 'TransReID')
    depths = [int(m[1]) for key in kept if (m := re.match(r'base\.blocks\.(\d+)\.', key))]
    num_layers = max(depths) + 1
    unused = (f'base.blocks.{num_layers - 1}.', 'base.norm.')
    kept = {key: value for key, value in kept.items() if not key.startswith(unused)}
    return rename(kept, _jpm_pairs(num_layers), 'TransReID')


def export_transreid(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ``ReIdentifier``'s weights under TransReID's names.

    With JPM, the last layer and norm are written both as the backbone's and as the global
    branch's (``b1``), since TransReID's model has both.
    """
    if not any(key.startswith('head.local_layer.') for key in state_dict):
        return rename(state_dict, _BASELINE, 'TransReID', reverse=True)
    num_layers = 1 + max(
        int(m[1]) for key in state_dict if (m := re.match(r'backbone\.layers\.(\d+)\.', key))
    )
    pairs = _jpm_pairs(num_layers)
    pairs.sort(key=lambda pair: not pair[1].startswith('head.bnnecks.0.'))
    exported = rename(state_dict, pairs, 'TransReID', reverse=True)
    renames = {'b1.0.': f'base.blocks.{num_layers - 1}.', 'b1.1.': 'base.norm.'}
    for key in list(exported):
        for branch, backbone in renames.items():
            if key.startswith(branch):
                exported[backbone + key.removeprefix(branch)] = exported[key]
    return exported
