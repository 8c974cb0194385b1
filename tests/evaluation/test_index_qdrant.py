"""A Qdrant collection in local mode finds and refuses what a GalleryIndex does."""

import numpy as np
import pytest
from qdrant_client import QdrantClient

from vitdown.evaluation.index import Between, GalleryIndex
from vitdown.evaluation.index.qdrant import QdrantGallery

from .test_index import DIM, columns, vectors


def rows(count):
    return {**columns(count), 'blurred': np.arange(count) % 3 == 0}


@pytest.fixture
def client():
    client = QdrantClient(':memory:')
    yield client
    client.close()


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_finds_what_the_exact_index_finds(client, metric):
    galleries = [QdrantGallery(client, 'g', DIM, metric), GalleryIndex(DIM, metric=metric)]
    for gallery in galleries:
        gallery.add(vectors(80), ids=np.arange(80) * 10, metadata=rows(80))
        assert gallery.add(vectors(3, seed=2), metadata=rows(3)).tolist() == [791, 792, 793]
        gallery.remove([0, 10, 793])
        assert len(gallery) == 80
    collection, exact = galleries
    for where in [
        None,
        {'camera': 3},
        {'camera': [0, 4.0, 2.5], 'site': 'north'},
        {'camera': Between(1, 3), 'time': Between(None, '2024-01-02')},
        {'time': '2024-01-01T05'},
        {'quality': [0.0, 1.0]},
        {'quality': Between(0.5)},
        {'blurred': True, 'site': ['north', 'east']},
        {'blurred': []},
        {'camera': []},
    ]:
        found, wanted = (gallery.search(vectors(5, seed=1), 12, where) for gallery in galleries)
        assert np.array_equal(found.ids, wanted.ids), where
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)
        for name, column in wanted.metadata.items():
            assert np.array_equal(found.metadata[name].mask, column.mask)
            assert found.metadata[name].tolist() == column.tolist(), name
    assert np.array_equal(np.sort(exact.ids), collection.ids)
    order = np.argsort(exact.ids)
    for name, column in exact.metadata.items():
        assert np.array_equal(collection.metadata[name], column[order])
    assert collection.recall_at(vectors(4, seed=1), 100) == 1


def test_a_collection_is_found_again(tmp_path):
    client = QdrantClient(path=str(tmp_path / 'store'))
    QdrantGallery(client, 'g', DIM).add(vectors(5), metadata={'site': list('abcde')})
    client.close()
    client = QdrantClient(path=str(tmp_path / 'store'))
    gallery = QdrantGallery(client, 'g', DIM)
    assert gallery.add(vectors(1, seed=1), metadata={'site': ['far away']}).tolist() == [5]
    assert (
        gallery.search(vectors(1, seed=1), 1, {'site': 'far away'}).metadata['site'] == 'far away'
    )
    assert "6 vectors in 'g'" in repr(gallery)
    for dim, metric in [(DIM + 1, 'cosine'), (DIM, 'euclidean')]:
        with pytest.raises(ValueError, match=f'holds vectors of {DIM} dimensions compared by Cos'):
            QdrantGallery(client, 'g', dim, metric)
    client.close()


def test_a_failed_add_adds_nothing(client, monkeypatch):
    from vitdown.evaluation.index import qdrant

    gallery = QdrantGallery(client, 'g', DIM)
    gallery.add(vectors(2))
    upsert = client.upsert
    monkeypatch.setattr(qdrant, '_POINTS_PER_CALL', 2)

    def breaks(collection, points, wait):
        if 4 in points.ids:
            raise OSError('connection lost')
        return upsert(collection, points, wait=wait)

    monkeypatch.setattr(client, 'upsert', breaks)
    with pytest.raises(OSError, match='connection lost'):
        gallery.add(vectors(4, seed=1))
    assert gallery.ids.tolist() == [0, 1]


def test_a_failed_first_add_decides_nothing(client, monkeypatch):
    gallery = QdrantGallery(client, 'g', DIM, model='abc')

    def breaks(*_, **__):
        raise OSError('connection lost')

    with monkeypatch.context() as broken:
        # Nothing can be undone while the server is away.
        for method in ('upsert', 'delete'):
            broken.setattr(client, method, breaks)
        with pytest.raises(OSError, match='connection lost'):
            gallery.add(vectors(2), metadata={'wrong': [1, 2]})
    assert gallery.column_types == QdrantGallery.open(client, 'g').column_types == {}
    for again in (gallery, QdrantGallery.open(client, 'g')):
        again.add(vectors(2), metadata={'right': ['a', 'b']})
    again = QdrantGallery.open(client, 'g')
    assert again.column_types.keys() == {'right'}
    assert again.metadata['right'].tolist() == ['a', 'b', 'a', 'b']
    assert again.model == 'abc'


def test_a_gallery_opened_while_empty_keeps_to_the_columns_of_another_writer(client):
    first, second = (QdrantGallery(client, 'g', DIM) for _ in range(2))
    first.add(vectors(1), metadata={'site': ['a']})
    with pytest.raises(ValueError, match=r"columns \['site'\] of the gallery are missing"):
        second.add(vectors(1), metadata={'camera': [1]})
    assert second.search(vectors(1), 1).metadata['site'] == 'a'
    second.add(vectors(1), metadata={'site': ['b']})
    assert second.metadata['site'].tolist() == ['a', 'b']


def test_the_model_outlives_a_server_that_replaces_metadata(client, monkeypatch):
    sent = []
    update = client.update_collection
    monkeypatch.setattr(
        client,
        'update_collection',
        lambda name, metadata: sent.append(metadata) or update(name, metadata=metadata),
    )
    QdrantGallery(client, 'g', DIM, model='abc').add(vectors(1), metadata={'site': ['a']})
    assert sent == [client.get_collection('g').config.metadata]
    assert 'abc' in sent[0].values()


@pytest.mark.parametrize('name', ['cam.id', 'cam[]', 'cam[0]', 'cam id', "cam's", 'камера', ''])
def test_any_name_without_quotes_and_backslashes_can_be_filtered(client, monkeypatch, name):
    indexed = []
    create = client.create_payload_index
    monkeypatch.setattr(
        client,
        'create_payload_index',
        lambda collection, path, kind: indexed.append(path) or create(collection, path, kind),
    )
    gallery = QdrantGallery(client, 'g', DIM)
    gallery.add(vectors(4), metadata={name: [0, 1, 2, 3]})
    assert indexed == [f'"{name}"']
    for condition, ids in [(2, [2]), ([0, 3], [0, 3]), (Between(1, 2), [1, 2]), ([], [])]:
        found = gallery.search(vectors(1), 4, {name: condition}).ids
        assert sorted(found[found >= 0]) == ids


@pytest.mark.parametrize('name', ['cam"', 'cam\\', 3])
def test_names_that_qdrant_cannot_address_are_refused(client, name):
    gallery = QdrantGallery(client, 'g', DIM)
    with pytest.raises(ValueError, match='strings without double quotes and backslashes'):
        gallery.add(vectors(1), metadata={name: [0]})
    assert len(gallery) == 0


def test_large_integers_are_exact_or_refused(client):
    gallery = QdrantGallery(client, 'g', DIM)
    gallery.add(vectors(4), metadata={'frame': [2**60, 2**60 + 1, 2**53 - 1, 7]})
    assert gallery.search(vectors(1), 1, {'frame': 2**60 + 1}).ids.tolist() == [[1]]
    found = gallery.search(vectors(1), 4, {'frame': Between(7, 2**53 - 1)}).ids
    assert sorted(found[found >= 0]) == [2, 3]
    for ends in [(2**60 + 1, 2**60 + 1), (None, 2**53), (-(2**53), None), (0, 2**70)]:
        with pytest.raises(ValueError, match=r"'frame'.*compares integers below 2\*\*53 only"):
            gallery.search(vectors(1), 1, {'frame': Between(*ends)})


def test_bad_input_is_named(client):
    gallery = QdrantGallery(client, 'g', DIM)
    with pytest.raises(ValueError, match='the gallery is empty'):
        gallery.search(vectors(1), 1)
    gallery.add(vectors(4), metadata={'camera': [0, 1, 2, 3], 'site': list('abcd')})
    for metadata, error, message in [
        (None, ValueError, r"columns \['camera', 'site'\] of the gallery are missing"),
        ({'camera': ['x'], 'site': ['a']}, TypeError, "'camera' holds int64, the new rows <U1"),
    ]:
        with pytest.raises(error, match=message):
            gallery.add(vectors(1), metadata=metadata)
    with pytest.raises(ValueError, match='1 ids are in the gallery already, the first is 3'):
        gallery.add(vectors(1), ids=[3], metadata={'camera': [0], 'site': ['a']})
    with pytest.raises(KeyError, match='1 ids are not in the gallery, the first is 9'):
        gallery.remove([3, 9])
    for where, error, message in [
        ({'cam': 1}, KeyError, "no metadata column 'cam', only"),
        ({'camera': 'one'}, TypeError, "'camera' holds int64, the condition <U3"),
        ({'site': Between('a', 'b')}, TypeError, 'Between needs numbers or times'),
        (lambda columns: columns['camera'] > 1, TypeError, 'takes conditions as a dict'),
        (np.array([True, False, True, True]), TypeError, 'takes conditions as a dict'),
        (np.array([]), TypeError, 'takes conditions as a dict'),
    ]:
        with pytest.raises(error, match=message):
            gallery.search(vectors(1), 1, where)
    with pytest.raises(ValueError, match='16'):
        gallery.search(vectors(1)[:, :4], 1)
    for k in (0, 2.5):
        with pytest.raises((TypeError, ValueError), match='k must be'):
            gallery.search(vectors(1), k)
    other = QdrantGallery(client, 'other', DIM)
    with pytest.raises(ValueError, match="'quality' holds NaN, infinity or no time in row 1"):
        other.add(vectors(2), metadata={'quality': [0.5, np.nan]})
    assert len(gallery) == 4
    assert len(other) == 0


def test_foreign_collections_and_missing_servers_are_named(client):
    from qdrant_client import models

    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection('theirs', vectors_config=params)
    with pytest.raises(ValueError, match="'theirs' was not made by QdrantGallery"):
        QdrantGallery(client, 'theirs', DIM)
    absent = QdrantClient('http://127.0.0.1:9', check_compatibility=False)
    with pytest.raises(ConnectionError, match='no Qdrant server answers'):
        QdrantGallery(absent, 'g', DIM)


def test_a_collection_is_opened_by_its_name_alone(client):
    made = QdrantGallery(client, 'people', 8, metric='euclidean', model='abc')
    made.add(np.eye(3, 8, dtype=np.float32), metadata={'camera': [1, 2, 3]})
    gallery = QdrantGallery.open(client, 'people')
    assert (gallery.dim, gallery.metric, gallery.model, len(gallery)) == (8, 'euclidean', 'abc', 3)
    with pytest.raises(FileNotFoundError, match="no Qdrant collection 'animals'"):
        QdrantGallery.open(client, 'animals')


def test_metadata_by_id(client):
    plain = GalleryIndex(DIM)
    stored = QdrantGallery(client, 'people', DIM)
    for gallery in (plain, stored):
        gallery.add(vectors(6), ids=[5, 3, 8, 1, 9, 2], metadata=rows(6))
        gallery.remove([8])
        assert gallery.column_types.keys() == rows(1).keys()
        for name, column in gallery.lookup([9, 5]).items():
            np.testing.assert_array_equal(column, rows(6)[name][[4, 0]])
        assert set(gallery.sample_ids(3)) < {5, 3, 1, 9, 2}
        assert sorted(gallery.sample_ids(100)) == [1, 2, 3, 5, 9]
        with pytest.raises(KeyError, match='1 ids are not in the gallery, the first is 8'):
            gallery.lookup([5, 8])
