import numpy as np
import pytest

from vitdown.apis.conditions import parse_conditions, split_conditions
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
    time = parse_conditions({'time': '2024-05-01 .. 2024-05-03T14:00+02:00'}, TYPES)['time']
    assert time == Between(np.datetime64('2024-05-01'), np.datetime64('2024-05-03T12:00:59.999999'))


@pytest.mark.parametrize(
    ('text', 'last'),
    [
        ('2024-05-03', '2024-05-03T23:59:59.999999'),
        ('2024-12-31', '2024-12-31T23:59:59.999999'),
        ('2024-05-03Z', '2024-05-03T23:59:59.999999'),
        ('2024-05-03T10:00:05', '2024-05-03T10:00:05.999999'),
        ('2024-05-03T10:00:05.25', '2024-05-03T10:00:05.250999'),
        ('2024-05-03T10:00:05.123456', '2024-05-03T10:00:05.123456'),
        ('2024-05-03T10:00:05.123456789', '2024-05-03T10:00:05.123456'),
    ],
)
def test_days_belong_to_a_range_whole(text, last):
    condition = parse_conditions({'time': f'..{text}'}, TYPES)['time']
    assert condition == Between(None, np.datetime64(last))


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        ({'kamera': '1'}, "no column 'kamera'"),
        ({'camera': 'north'}, "'camera' holds int64, 'north' is none"),
        ({'camera': '9' * 30}, "'camera' holds int64, '9{30}' is out of its range"),
        ({'time': 'May'}, "'May' is none"),
        ({'time': '2024-02-30'}, "column 'time' .* '2024-02-30' is none: day out of range"),
        ({'blurred': 'maybe'}, "'maybe' is none"),
        ({'height': 'nan..2'}, "'nan' is none"),
        ({'camera': ''}, "column 'camera': a value is missing in ''"),
        ({'site': 'north,,'}, "column 'site': a value is missing in 'north,,'"),
        ({'camera': ' .. '}, 'no ends'),
        ({'camera': '7..3'}, "column 'camera': the range '7..3' ends before it begins"),
        ({'time': '2024-05-03..2024-05-01'}, 'ends before it begins'),
    ],
)
def test_mistakes(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_conditions(texts, TYPES)


def test_conditions_of_a_command_line():
    assert split_conditions(['camera=1,2', 'site=a=b']) == {'camera': '1,2', 'site': 'a=b'}
    for texts, message in [
        (['camera'], "COLUMN=VALUES, 'camera' is none"),
        (['=1'], "COLUMN=VALUES, '=1' is none"),
        (['camera=1', 'camera=2'], "'camera' has two conditions, '1' and '2'"),
    ]:
        with pytest.raises(ValueError, match=message):
            split_conditions(texts)
