import numpy as np
import pytest

from vitdown.apis.conditions import parse_conditions
from vitdown.evaluation.index import Between

TYPES = {
    'camera': np.dtype(np.int64),
    'site': np.dtype('U8'),
    'time': np.dtype('M8[us]'),
    'height': np.dtype(np.float32),
    'blurred': np.dtype(bool),
}


def test_text_becomes_values_of_the_columns_type():
    texts = {'camera': '1, 2', 'site': '7,n..e', 'blurred': 'yes', 'height': '1.5..'}
    assert parse_conditions(texts, TYPES) == {
        'camera': [1, 2],
        'site': ['7', 'n..e'],
        'blurred': [True],
        'height': Between(1.5, None),
    }
    time = parse_conditions({'time': '2024-05-01 .. 2024-05-03T12:00'}, TYPES)['time']
    assert time == Between(np.datetime64('2024-05-01'), np.datetime64('2024-05-03T12:00'))


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        ({'kamera': '1'}, "no column 'kamera'"),
        ({'camera': 'north'}, "'camera' holds int64, 'north' is none"),
        ({'time': 'May'}, "'May' is none"),
        ({'blurred': 'maybe'}, "'maybe' is none"),
    ],
)
def test_mistakes(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_conditions(texts, TYPES)
