import re
from collections.abc import Mapping, Sequence

from torch import Tensor

# (foreign name, vitdown name); {i} stands for a number, {p} for the last part of the name
NamePair = tuple[str, str]
_FIELDS = {'{i}': r'(?P<i>\d+)', '{j}': r'(?P<j>\d+)', '{p}': r'(?P<p>\w+)'}


def rename(
    state_dict: Mapping[str, Tensor], pairs: Sequence[NamePair], name: str, reverse: bool = False
) -> dict[str, Tensor]:
    """Translate every name of a state dict by a table of pairs.

    Args:
        state_dict (Mapping[str, Tensor]): Weights.
        pairs (Sequence[tuple[str, str]]): Foreign and own name; the first that matches is taken.
        name (str): What the foreign format is called, for messages.
        reverse (bool): Translate own names to foreign ones. Defaults to False.

    Raises:
        ValueError: If a name is in no pair, or two weights get the same name.
    """
    table = [
        (_pattern(own if reverse else foreign), foreign if reverse else own)
        for foreign, own in pairs
    ]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in state_dict.items():
        new_key = next(
            (
                new.format(**match.groupdict())
                for old, new in table
                if (match := old.fullmatch(key))
            ),
            None,
        )
        if new_key is None:
            unknown.append(key)
        elif new_key in renamed:
            raise ValueError(f'Two weights would become {new_key} in the {name} format')
        else:
            renamed[new_key] = value
    if unknown:
        more = f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''
        raise ValueError(f'The {name} format has no weights {", ".join(unknown[:5])}{more}')
    return renamed


def _pattern(template: str) -> re.Pattern:
    pattern = re.escape(template.replace('{', '<').replace('}', '>'))
    for field, expression in _FIELDS.items():
        pattern = pattern.replace(re.escape(field.replace('{', '<').replace('}', '>')), expression)
    return re.compile(pattern)
