"""Evaluation of feature files, run as a user runs it."""

import csv
import json
import sys

import numpy as np
import pytest

from tests.conftest import run_tool
from tests.evaluation.test_ranking import random_set
from tools.analysis_tools.evaluate_features import parse_args
from vitdown.evaluation.feature_set import load_feature_sets
from vitdown.evaluation.functional import (
    evaluate_distances,
    evaluate_ranking,
    evaluate_vehicleid,
    k_reciprocal_rerank,
    query_expansion,
    tpr_at_fpr,
)

TOOL = 'tools/analysis_tools/evaluate_features.py'


@pytest.fixture
def data():
    return random_set(0)


@pytest.fixture
def file(tmp_path, data):
    np.savez(tmp_path / 'features.npz', **data)
    return tmp_path / 'features.npz'


def test_all_at_once(file, data):
    out, per_query = file.with_name('metrics.json'), file.with_name('queries.csv')
    output = run_tool(
        TOOL, file, '--topk', '1', '3', '--rerank', '--k1', '8', '--k2', '3',
        '--query-expansion', '4', '--alpha', '3', '--tpr-at-fpr', '0.1', '--max-memory-mb', '1',
        '--out', out, '--per-query', per_query,
    ).stdout  # fmt: skip
    assert '12 queries of 6 identities, 90 gallery images of 6 identities' in output
    assert 'Protocol: cross-camera' in output
    assert '1 queries have no positive' in output

    features = data.pop('query_features'), data.pop('gallery_features')
    plain = evaluate_ranking(*features, **data, topk=(1, 3), return_per_query=True)
    expanded = query_expansion(*features, k=4, alpha=3)
    reranked = k_reciprocal_rerank(*features, k1=8, k2=3)
    results = {
        '': plain,
        'qe_': evaluate_ranking(expanded, features[1], **data, topk=(1, 3)),
        'rerank_': evaluate_distances(reranked, **data, topk=(1, 3)),
    }
    wanted = {
        prefix + name: 100 * result[name]
        for prefix, result in results.items()
        for name in ('mAP', 'mINP', 'CMC@1', 'CMC@3')
    }
    wanted['TPR@FPR=0.1'] = 100 * tpr_at_fpr(*features, **data, fpr=(0.1,))['TPR@FPR=0.1']
    assert json.loads(out.read_text()) == pytest.approx(wanted)
    for value in wanted.values():
        assert f'{value:.2f}' in output

    with open(per_query, newline='') as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row['id']) for row in rows] == data['query_ids'].tolist()
    assert [float(row['AP']) for row in rows[:-1]] == plain['AP'][:-1].tolist()
    assert [int(row['first_hit_rank']) for row in rows[:-1]] == plain['first_hit_rank'][
        :-1
    ].tolist()
    assert rows[-1]['AP'] == rows[-1]['rerank_AP'] == rows[-1]['qe_first_hit_rank'] == ''


def test_vehicleid_prints_the_spread(file, data):
    output = run_tool(TOOL, file, '--protocol', 'vehicleid', '--repeats', '3', '--seed', '4').stdout
    features = np.concatenate([data['query_features'], data['gallery_features']])
    ids = np.concatenate([data['query_ids'], data['gallery_ids']])
    wanted = evaluate_vehicleid(features, ids, repeats=3, seed=4)
    assert '3 draws, seed 4' in output
    for name in ('mAP', 'mINP', 'CMC@1', 'CMC@10'):
        assert f'{100 * wanted[name]:.2f} +- {100 * wanted[f"{name}_std"]:.2f}' in output


def test_mistakes_end_in_one_message(file, data):
    def message(*args):
        result = run_tool(TOOL, *args, check=False)
        assert result.returncode == 2
        assert 'Traceback' not in result.stderr
        return result.stderr

    assert '--out metrics.txt: use a file name' in message(file, '--out', 'metrics.txt')
    assert 'rerank needs a fixed gallery' in message(file, '--rerank', '--protocol', 'vehicleid')
    del data['gallery_ids']
    np.savez(file, **data)
    assert "holds no array 'gallery_ids'" in message(file)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--k1', '8'], '--k1 does nothing without --rerank'),
        (['--query-expansion', '--lambda-value', '0.3'], '--lambda-value does nothing without'),
        (['--rerank', '--alpha', '0'], '--alpha does nothing without --query-expansion'),
    ],
)
def test_options_of_what_is_off_are_refused(monkeypatch, capsys, args, message):
    monkeypatch.setattr(sys, 'argv', ['evaluate_features.py', 'features.npz', *args])
    with pytest.raises(SystemExit):
        parse_args()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(('share', 'message'), [(0, 'is no .npz file'), (0.5, 'is damaged')])
def test_damaged_file_is_named(file, share, message):
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f'features.npz {message}'):
        load_feature_sets(file)
