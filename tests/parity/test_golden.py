"""The comparison that all parity tests rely on."""

import json
import re

import numpy as np
import pytest
import torch

from .golden import DEFAULT_ROOT, GoldenFile, golden_files, mismatch


def write(path, arrays, outputs, tolerance=None, **meta):
    meta = {
        'schema': 1,
        'method': 'm',
        'kind': 'k',
        'outputs': dict.fromkeys(outputs, ''),
        'inputs': {},
        'tolerance': tolerance or {'rtol': 0.0, 'atol': 0.0},
        **meta,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, meta=json.dumps(meta), **arrays)
    return GoldenFile(path)


def values(*numbers):
    return np.array(numbers, dtype=np.float64)


@pytest.mark.parametrize(
    ('rule', 'stored', 'passes', 'fails'),
    [
        ({}, [1.0, 2.0], [1.0, 2.0], [1.0, 2.0000001]),
        ({'atol': 0.1}, [1.0, -2.0], [1.09, -2.09], [1.0, -2.11]),
        ({'rtol': 0.1}, [1.0, -20.0], [1.09, -21.9], [1.11, -20.0]),
        ({'rtol': 0.1, 'atol': 0.5}, [10.0], [11.49], [11.51]),
        ({'rtol': [0.0, 0.1]}, [1.0, 1.0], [1.0, 1.09], [1.05, 1.05]),
        ({'atol': [0.1, 0.0]}, [1.0, 1.0], [1.09, 1.0], [1.05, 1.05]),
        (
            {'atol': [0.1, 0.0]},
            [[1.0, 2.0], [1.0, 2.0]],
            [[1.05, 2.05], [1, 2]],
            [[1, 2], [1, 2.05]],
        ),
        ({'atol': 0.01, 'atol_max': 0.1}, [1.0, -20.0], [2.9, -20.0], [3.1, -20.0]),
        ({'atol': 0.5, 'atol_max': 0.1}, [1.0, 2.0], [1.4, 2.0], [1.6, 2.0]),
        ({'min_fraction': 0.75}, [1, 2, 3, 4.0], [9, 2, 3, 4.0], [9, 9, 3, 4.0]),
        (
            {'outlier_fraction': 0.25, 'outlier_atol': 0.5},
            [1, 2, 3, 4.0],
            [1.4, 2, 3, 4.0],
            [1.4, 2.4, 3, 4.0],
        ),
        (
            {'outlier_fraction': 0.25, 'outlier_atol': 0.5},
            [1, 2, 3, 4.0],
            [1.5, 2, 3, 4.0],
            [1.6, 2, 3, 4.0],
        ),
        (
            {'atol': 1.0, 'outlier_fraction': 0.25, 'outlier_atol': 0.5},
            [1, 2, 3, 4.0],
            [1.9, 2.9, 3.9, 4.9],
            [2.1, 2, 3, 4.0],
        ),
        ({'atol': 1.0}, [np.inf, np.nan, 1.0], [np.inf, np.nan, 1.0], [np.inf, 1.0, 1.0]),
        ({'atol': 1.0}, [np.inf], [np.inf], [-np.inf]),
        ({'rtol': 0.1}, [np.inf], [np.inf], [1.0]),
        ({'atol': 1.0}, [1.0], [1.0], [np.nan]),
    ],
)
def test_tolerance_rules(rule, stored, passes, fails):
    assert mismatch(np.array(passes, float), np.array(stored, float), **rule) is None
    assert mismatch(np.array(fails, float), np.array(stored, float), **rule)


def test_integers_and_booleans_are_exact():
    big = np.array([2**60, 3])
    assert mismatch(big, big) is None
    assert mismatch(big + np.array([1, 0]), big)
    assert mismatch(torch.tensor([1, 2], dtype=torch.int32), np.array([1, 2])) is None
    assert mismatch(np.array([1.0, 2.0]), np.array([1, 2])) is None
    assert mismatch(np.array([1.0, 2.5]), np.array([1, 2]))
    assert mismatch(np.array([True, False]), np.array([True, False])) is None
    assert mismatch(np.array([True, True]), np.array([True, False]))
    codes = np.array([7, 7, 7, 7], np.uint8)
    one_off = np.array([6, 7, 7, 7], np.uint8)
    two_off = np.array([5, 7, 7, 7], np.uint8)
    rule = {'outlier_fraction': 0.25, 'outlier_atol': 1.0}
    assert mismatch(one_off, codes, **rule) is None
    assert mismatch(two_off, codes, **rule)


def test_shapes_must_agree():
    assert mismatch(np.zeros((2, 1)), np.zeros((2, 2))) == 'shape (2, 1) instead of (2, 2)'
    assert mismatch(3.0, np.array(3.0)) is None
    assert mismatch([1.0, 2.0], values(1, 2)) is None
    assert mismatch(np.zeros((0, 2)), np.zeros((0, 2))) is None
    with pytest.raises(ValueError, match='3 tolerances'):
        mismatch(values(1, 2), values(1, 2), atol=[0, 0, 0])


def test_tensors_of_any_type_are_compared():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert mismatch(torch.ones(2, dtype=dtype, requires_grad=True), values(1, 1)) is None


def test_message_names_the_worst_element():
    message = mismatch(values(1, 2, 3.5), values(1, 2, 3), atol=0.1)
    assert '1 of 3 elements' in message
    assert 'worst at (2,)' in message
    assert '3.5' in message


def test_patterns_replace_the_tolerance(tmp_path):
    golden = write(
        tmp_path / 'a.npz',
        {'loss': values(1), 'grad/w': values(1), 'step': np.array([1]), 'code': np.array([4])},
        ['*'],
        {
            'rtol': 0.0,
            'atol': 0.1,
            'note': 'words',
            'per_key': {
                'grad*': {'rtol': 0.0, 'atol': 0.5},
                '*/w': {'rtol': 0.0, 'atol': 0.5},
                'code': {'atol': 1},
            },
        },
    )
    golden.compare('loss', [1.05])
    golden.compare('grad/w', [1.4])
    golden.compare('step', [1])
    golden.compare('code', [5])
    golden.assert_all_compared()
    for key, wrong in (('loss', [1.2]), ('grad/w', [1.6]), ('step', [2]), ('code', [6])):
        with pytest.raises(AssertionError, match=f'a.npz, {key}: 1 of 1'):
            golden.compare(key, wrong)


def test_patterns_must_not_disagree(tmp_path):
    per_key = {'a*': {'atol': 1.0}, '*b': {'atol': 2.0}}
    golden = write(tmp_path / 'a.npz', {'ab': values(1)}, ['ab'], {'atol': 0, 'per_key': per_key})
    with pytest.raises(ValueError, match="disagree on the tolerance of 'ab'"):
        golden.compare('ab', [1.0])


def test_unknown_rules_are_errors(tmp_path):
    golden = write(tmp_path / 'a.npz', {'a': values(1)}, ['a'], {'atol': 0, 'ulps': 3})
    with pytest.raises(TypeError, match='ulps'):
        golden.compare('a', [1.0])


def test_outputs_that_were_not_compared_are_errors(tmp_path):
    arrays = {'x': values(1), 'out/1': values(1), 'out/2': values(2)}
    golden = write(tmp_path / 'a.npz', arrays, ['out/*'])
    golden.compare('out/1', [1.0])
    with pytest.raises(AssertionError, match=re.escape("never compared: ['out/2']")):
        golden.assert_all_compared()
    golden.compare('out/2', [2.0])
    golden.assert_all_compared()


def test_case_and_setting_stand_for_names(tmp_path):
    arrays = {'[1]/out': values(1), 'b/soft/out': values(1), 'c/out': values(1)}
    golden = write(
        tmp_path / 'a.npz',
        arrays,
        ['{case}/out', '{case}/{setting}/out'],
        cases={'[1]': {}, 'b': {'settings': {'soft': {}}}},
    )
    assert golden.output_keys() == ['[1]/out', 'b/soft/out']


def test_outputs_that_are_not_stored_are_errors(tmp_path):
    golden = write(tmp_path / 'a.npz', {'x': values(1)}, ['y*'])
    with pytest.raises(ValueError, match=re.escape("no entry fits the output pattern 'y*'")):
        golden.assert_all_compared()
    with pytest.raises(KeyError, match='no entry'):
        golden.compare('y', [1.0])


def test_file_gives_arrays_and_tensors(tmp_path):
    golden = write(tmp_path / 'a.npz', {'sd/w': values(1), 'sd/b': values(2), 'x': values(3)}, [])
    assert golden.kind == 'k'
    assert set(golden.keys) == {'sd/w', 'sd/b', 'x'}
    assert golden['x'].tolist() == [3]
    assert 'x' in golden
    assert 'meta' not in golden
    assert {k: v.tolist() for k, v in golden.tensors('sd/').items()} == {'w': [1], 'b': [2]}
    golden.tensor('x').zero_()
    assert golden['x'].tolist() == [3]


def test_files_without_description_are_rejected(tmp_path):
    np.savez(tmp_path / 'a.npz', x=values(1))
    with pytest.raises(ValueError, match='no entry "meta"'):
        GoldenFile(tmp_path / 'a.npz')


def test_finds_files_of_a_method(tmp_path, monkeypatch):
    monkeypatch.delenv('VITDOWN_GOLDEN', raising=False)
    assert golden_files('dcal')
    assert all(DEFAULT_ROOT in path.parents for path in golden_files('dcal'))
    for name in ('m/b.npz', 'm/a.npz', 'm/deeper/c.npz', 'other/d.npz'):
        write(tmp_path / name, {}, [])
    monkeypatch.setenv('VITDOWN_GOLDEN', str(tmp_path))
    found = [path.relative_to(tmp_path).as_posix() for path in golden_files('m')]
    assert found == ['m/a.npz', 'm/b.npz', 'm/deeper/c.npz']
    with pytest.raises(FileNotFoundError, match='VITDOWN_GOLDEN'):
        golden_files('nothing')


def test_torn_file_is_named(tmp_path):
    whole = golden_files('dcal')[0].read_bytes()
    torn = tmp_path / 'torn.npz'
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match='torn.npz cannot be read'):
        GoldenFile(torn)
