import re
from collections.abc import Mapping

from torch import Tensor

_STUDENT = 'student.'
# Beside the weights of a DistilledClassifier's student, which have no prefix.
_LOSSES = 'distill_losses.'
# Norms of a Swin's inner stages, which exist for USKD's middle feature only.
_INNER_NORM = re.compile(r'backbone\.norm[0-2]\.')


def convert_cls_kd(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Checkpoints of the official NKD/USKD code: the student's weights, under mmpretrain's names.

    Those of ``DistilledClassifier``, too. Files whose student has been taken out already are
    accepted; teacher, losses and a Swin's norms of inner stages, which only USKD looks at, are left
    out.
    """
    if any(key.startswith(_STUDENT) for key in state_dict):
        student = {
            key.removeprefix(_STUDENT): value
            for key, value in state_dict.items()
            if key.startswith(_STUDENT)
        }
    else:
        student = {k: value for k, value in state_dict.items() if not k.startswith(_LOSSES)}
    other = sorted(key for key in student if not key.startswith(('backbone.', 'neck.', 'head.')))
    if other:
        raise ValueError(f'The cls_kd format has no weights {", ".join(other[:5])}')
    return {key: value for key, value in student.items() if not _INNER_NORM.match(key)}


def export_cls_kd(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the prefix ``student.``."""
    return {_STUDENT + key: value for key, value in state_dict.items()}
