import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from vitdown.apis import Embeddings, load_embeddings, read_metadata
from vitdown.evaluation.feature_set import FeatureSet, save_feature_sets

FEATURES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def embeddings():
    times = np.array(['2024-05-01', '2024-05-02'], dtype='M8[us]')
    return Embeddings(
        FEATURES, np.array(['a.jpg', 'ü.jpg']), {'camera': np.array([1, 2]), 'time': times}, 'abc'
    )


def test_npz_round_trip(embeddings, tmp_path):
    embeddings.save(tmp_path / 'new folder' / 'f.npz')
    loaded = load_embeddings(tmp_path / 'new folder' / 'f.npz')
    np.testing.assert_array_equal(loaded.features, FEATURES)
    assert loaded.model == 'abc'
    assert loaded.columns().keys() == {'path', 'camera', 'time'}
    for name, column in embeddings.columns().items():
        np.testing.assert_array_equal(loaded.columns()[name], column)


def test_json_lines(embeddings, tmp_path):
    embeddings.save(tmp_path / 'f.jsonl')
    first, second = map(json.loads, (tmp_path / 'f.jsonl').read_text().splitlines())
    assert first == {
        'path': 'a.jpg', 'camera': 1, 'time': '2024-05-01T00:00:00.000000',
        'feature': [0.0, 1.0, 2.0],
    }  # fmt: skip
    assert second['path'] == 'ü.jpg'


def test_csv(embeddings, tmp_path):
    embeddings.save(tmp_path / 'f.csv')
    with open(tmp_path / 'f.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.reader(file))
    assert rows[0] == ['path', 'camera', 'time', 'f0', 'f1', 'f2']
    assert rows[2] == ['ü.jpg', '2', '2024-05-02T00:00:00.000000', '3.0', '4.0', '5.0']


def test_columns_do_not_pose_as_results(embeddings):
    with pytest.raises(ValueError, match="metadata: the column name 'score' is taken"):
        replace(embeddings, metadata={'score': np.ones(len(embeddings))})


def test_other_endings_are_refused(embeddings, tmp_path):
    with pytest.raises(ValueError, match=r'\.npz, \.jsonl or \.csv'):
        embeddings.save(tmp_path / 'f.txt')


def test_the_gallery_of_a_feature_file(tmp_path):
    names = np.array(['a', 'b'])
    query = FeatureSet(FEATURES[:1], np.array([7]), np.array([0]), names[:1])
    gallery = FeatureSet(FEATURES, np.array([7, 8]), np.array([1, 2]), names)
    save_feature_sets(tmp_path / 'f.npz', query, gallery)
    loaded = load_embeddings(tmp_path / 'f.npz')
    np.testing.assert_array_equal(loaded.features, FEATURES)
    assert {k: v.tolist() for k, v in loaded.columns().items()} == {
        'path': ['a', 'b'], 'identity': [7, 8], 'camera': [1, 2],
    }  # fmt: skip


def test_broken_feature_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        load_embeddings(tmp_path / 'f.npz')
    (tmp_path / 'f.npz').write_text('text')
    with pytest.raises(ValueError, match=r'is no \.npz file'):
        load_embeddings(tmp_path / 'f.npz')
    np.savez(tmp_path / 'f.npz', features=FEATURES)
    with pytest.raises(ValueError, match="holds no array 'paths'"):
        load_embeddings(tmp_path / 'f.npz')


def test_metadata_are_typed_and_found_by_file(tmp_path, monkeypatch):
    table = tmp_path / 'table.csv'
    table.write_text(
        'path,camera,height,time,site,tag,long\n'
        f'deep/b.jpg,2,1.5,2024-05-02T10:00Z,north,0017,{10**30}\n'
        'http://host/c.jpg,4,.5,2024-05-03,south,12,1\n'
        f'{tmp_path}/a.jpg, 3,2e1,2024-05-01T01:00:00.5+02:00,7,0,2\n'
    )
    monkeypatch.chdir(tmp_path)
    columns = read_metadata(table, ['a.jpg', 'http://host/c.jpg', str(tmp_path / 'deep/b.jpg')])
    assert {name: column.dtype.kind for name, column in columns.items()} == {
        'camera': 'i', 'height': 'f', 'time': 'M', 'site': 'U', 'tag': 'U', 'long': 'U',
    }  # fmt: skip
    assert columns['camera'].tolist() == [3, 4, 2]
    assert columns['height'].tolist() == [20, 0.5, 1.5]
    assert columns['site'].tolist() == ['7', 'south', 'north']
    assert columns['tag'].tolist() == ['0', '12', '0017']
    times = np.array(['2024-04-30T23:00:00.5', '2024-05-03', '2024-05-02T10:00'], 'M8[us]')
    np.testing.assert_array_equal(columns['time'], times)


def test_metadata_are_found_by_other_names_of_the_file(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    table = tmp_path / 'link' / 'table.csv'
    table.write_text('path,camera\n./x/../a.jpg,1\n../link/b.jpg,2\n')
    paths = [str(tmp_path / 'real' / 'a.jpg'), str(tmp_path / 'link' / '.' / 'b.jpg')]
    assert read_metadata(table, paths)['camera'].tolist() == [1, 2]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('image,camera\na.jpg,1\n', "must name 'path'"),
        ('path\na.jpg\n', 'at least one more column'),
        ('path,score\na.jpg,1\n', "'score' is taken"),
        ('path,camera\na.jpg\n', 'line 2: 2 fields expected'),
        ('path,camera\nb.jpg,1\n', r'no row for a\.jpg'),
        ('path,day\na.jpg,2024-13-01\n', r"csv: column 'day' .* '2024-13-01' .* month out of"),
        ('path,day\na.jpg,soon\nb.jpg,2024-12-01\n', r"csv: column 'day' holds times, 'soon'"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'table.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_metadata(tmp_path / 'table.csv', ['a.jpg', 'b.jpg'][: text.count('.jpg')])
