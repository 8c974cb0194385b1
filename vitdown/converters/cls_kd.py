from collections.abc import Mapping

from torch import Tensor

_STUDENT = 'student.'


def convert_cls_kd(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Checkpoints of the official NKD/USKD code: the student's weights, under mmpretrain's names.

    Files whose student has been taken out already are accepted too; teacher and losses are left
    out.
    """
    if any(key.startswith(_STUDENT) for key in state_dict):
        return {
            key.removeprefix(_STUDENT): value
            for key, value in state_dict.items()
            if key.startswith(_STUDENT)
        }
    other = sorted(key for key in state_dict if not key.startswith(('backbone.', 'neck.', 'head.')))
    if other:
        raise ValueError(f'The cls_kd format has no weights {", ".join(other[:5])}')
    return dict(state_dict)


def export_cls_kd(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the prefix ``student.``."""
    return {_STUDENT + key: value for key, value in state_dict.items()}
