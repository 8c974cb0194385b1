"""GalleryIndex: searches agree with brute force, whatever the index, condition and removals."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from vitdown.evaluation.index import Between, GalleryIndex, recommend

DIM = 16
# Each with enough effort to look at everything, where it keeps whole vectors.
EXACT = ['Flat', 'IVF4,Flat', 'HNSW16']
FACTORIES = [*EXACT, 'SQ8', 'IVF4,SQ8', 'PQ4x4', 'IVF4,PQ4x4', 'PCA8,IVF4,Flat', 'HNSW8,SQ8']


def vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def columns(count):
    start = np.datetime64('2024-01-01T00:00:00')
    return {
        'camera': np.arange(count) % 5,
        'time': start + np.arange(count) * np.timedelta64(1, 'h'),
        'site': np.array(['north', 'south-east'])[np.arange(count) % 2],
        'quality': np.linspace(0, 1, count),
    }


def filled(factory='Flat', metric='cosine', count=300):
    gallery = GalleryIndex(DIM, factory, metric, effort=400)
    gallery.add(vectors(count), ids=np.arange(count) * 10, metadata=columns(count))
    return gallery


def brute_force(queries, gallery, ids, metric, k):
    """Ids and scores by definition, in double precision."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if metric == 'cosine':
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
        scores = queries @ gallery.T
        order = np.argsort(-scores, axis=1)[:, :k]
    else:
        scores = np.linalg.norm(queries[:, None] - gallery[None], axis=2)
        order = np.argsort(scores, axis=1)[:, :k]
    return ids[order], np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('factory', EXACT)
def test_search_is_brute_force_search_with_conditions_and_removals(factory, metric):
    gallery, queries = filled(factory, metric), vectors(7, seed=1)
    gallery.remove([0, 10, 2990])
    keep = np.setdiff1d(np.arange(300), [0, 1, 299])
    conditions = [None, {'camera': 3}, {'camera': [0, 4], 'site': 'north'}]
    conditions += [lambda c: c['quality'] > 0.95, {'time': Between(None, '2024-01-02')}]
    for where, rows in zip(
        conditions,
        [
            keep,
            keep[keep % 5 == 3],
            keep[np.isin(keep % 5, [0, 4]) & (keep % 2 == 0)],
            keep[columns(300)['quality'][keep] > 0.95],
            keep[keep <= 24],
        ],
    ):
        ids, scores = brute_force(queries, vectors(300)[rows], rows * 10, metric, 5)
        result = gallery.search(queries, 5, where)
        np.testing.assert_array_equal(result.ids, ids)
        np.testing.assert_allclose(result.scores, scores, atol=1e-5)
        np.testing.assert_array_equal(result.metadata['camera'], ids // 10 % 5)


@pytest.mark.parametrize('factory', FACTORIES)
def test_every_index_finds_only_and_all_that_match(factory):
    gallery = filled(factory)
    gallery.remove([30])
    everything = np.setdiff1d(np.arange(3, 300, 5), [3]) * 10
    result = gallery.search(vectors(3, seed=2), 70, {'camera': 3})
    for row in result.ids:
        np.testing.assert_array_equal(np.sort(row[row >= 0]), everything)
        assert (row[len(everything) :] == -1).all()
    assert np.isneginf(result.scores[:, len(everything) :]).all()
    assert result.metadata['site'].mask[:, len(everything) :].all()
    few = gallery.search(vectors(3, seed=2), 4, {'camera': 3})
    assert np.isin(few.ids, everything).all()
    assert (np.diff(few.scores, axis=1) <= 0).all()


@pytest.mark.parametrize('factory', FACTORIES)
def test_a_compacted_gallery_finds_the_same_and_grows_on(factory):
    gallery = filled(factory)
    gallery.remove(np.arange(0, 1000, 10))
    before = gallery.search(vectors(5, seed=3), 3)
    gallery.compact()
    after = gallery.search(vectors(5, seed=3), 3)
    assert (before.ids == after.ids).mean() > 0.8
    np.testing.assert_array_equal(gallery.ids, np.arange(100, 300) * 10)
    gallery.add(vectors(1, seed=9), ids=[0], metadata=columns(1))
    assert 0 in gallery.search(vectors(1, seed=9), 3).ids
    assert len(gallery) == 201


def test_ids_count_up_and_are_given_once():
    gallery = GalleryIndex(DIM)
    np.testing.assert_array_equal(gallery.add(vectors(2)), [0, 1])
    gallery.add(vectors(1), ids=[7])
    np.testing.assert_array_equal(gallery.add(vectors(2)), [8, 9])
    with pytest.raises(ValueError, match='1 ids are in the gallery already, the first is 7'):
        gallery.add(vectors(2), ids=[7, 20])
    with pytest.raises(ValueError, match='id 20 is given more than once'):
        gallery.add(vectors(2), ids=[20, 20])
    gallery.remove([7])
    gallery.add(vectors(1, seed=5), ids=[7])
    assert gallery.search(vectors(1, seed=5), 1).ids[0, 0] == 7
    with pytest.raises(KeyError, match='1 ids are not in the gallery, the first is 99'):
        gallery.remove([8, 99])
    assert len(gallery) == 5


def test_appending_keeps_columns_and_widens_strings():
    gallery = GalleryIndex(DIM)
    gallery.add(vectors(1), metadata={'site': ['a']})
    gallery.add(vectors(1, seed=1), metadata={'site': ['far away']})
    result = gallery.search(vectors(1, seed=1), 1, {'site': 'far away'})
    assert result.metadata['site'][0, 0] == 'far away'


@pytest.mark.parametrize(
    ('metadata', 'error', 'message'),
    [
        (None, ValueError, "columns \\['camera'\\] of the gallery are missing"),
        ({'camera': [1], 'x': [2]}, ValueError, "\\['x'\\] are unknown to the gallery"),
        ({'camera': [1, 2]}, ValueError, "'camera' must hold one value for each of the 1 vectors"),
        ({'camera': ['one']}, TypeError, "'camera' holds int64, the new rows <U3"),
        ({'camera': [{}]}, TypeError, "'camera' has the type object"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(metadata, error, message):
    gallery = GalleryIndex(DIM)
    gallery.add(vectors(1), metadata={'camera': [1]})
    with pytest.raises(error, match=message):
        gallery.add(vectors(1), metadata=metadata)
    assert len(gallery) == 1


def test_bad_input_is_named():
    gallery = filled(count=20)
    broken = vectors(2)
    broken[1, 3] = np.nan
    for features, message in [
        (vectors(2)[:, :4], 'features have 4 dimensions, the gallery 16'),
        (broken, 'first is row 1'),
        (vectors(0), 'features is empty'),
    ]:
        with pytest.raises(ValueError, match=message):
            gallery.search(features, 1)
        with pytest.raises(ValueError, match=message):
            gallery.add(features, metadata=columns(len(features)))
    with pytest.raises(ValueError, match='k must be at least 1'):
        gallery.search(vectors(1), 0)
    with pytest.raises(KeyError, match="no metadata column 'cam', only"):
        gallery.search(vectors(1), 1, {'cam': 1})
    with pytest.raises(TypeError, match="'camera' holds int64, the condition <U3"):
        gallery.search(vectors(1), 1, {'camera': 'one'})
    with pytest.raises(ValueError, match='one boolean for each of the 20 vectors'):
        gallery.search(vectors(1), 1, np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match='the gallery is empty'):
        GalleryIndex(DIM).search(vectors(1), 1)
    with pytest.raises(ValueError, match="FAISS refuses the factory string 'Flatt'"):
        GalleryIndex(DIM, 'Flatt')
    with pytest.raises(ValueError, match="10 vectors are too few to train 'IVF64,Flat'"):
        GalleryIndex(DIM, 'IVF64,Flat').add(vectors(10))


def test_recall_is_measured_against_the_exact_search():
    gallery, queries = filled('IVF16,Flat'), vectors(20, seed=1)
    assert gallery.recall_at(queries, 5) == 1
    narrow = GalleryIndex(DIM, 'IVF16,Flat', effort=1)
    narrow.add(vectors(300))
    exact = brute_force(queries, vectors(300), np.arange(300), 'cosine', 5)[0]
    found = narrow.search(queries, 5).ids
    expected = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, found)])
    assert 0 < expected < 1
    assert narrow.recall_at(queries, 5) == pytest.approx(expected)
    assert narrow.recall_at(queries, 5, vectors(300)) == pytest.approx(expected)
    coded = filled('PQ4x4')
    with pytest.raises(ValueError, match='give the original vectors'):
        coded.recall_at(queries, 5)
    assert 0 < coded.recall_at(queries, 5, vectors(300)) < 1


def test_recommendations_fit_their_budget():
    assert recommend(10_000, 384).factory == 'Flat'
    assert recommend(500_000, 384).factory == 'HNSW32'
    assert recommend(4_000_000, 384).factory == 'IVF8000,Flat'
    for budget, codes in [(1600, 'Flat'), (600, 'SQ8'), (250, 'PQ192'), (100, 'PQ48')]:
        choice = recommend(1_000_000, 384, budget)
        assert choice.factory == f'IVF4000,{codes}'
        assert choice.memory_mb <= budget
        assert GalleryIndex(384, choice.factory).factory == choice.factory
    with pytest.raises(ValueError, match='fits 1 MiB; the smallest, IVF4000,PQ24, needs'):
        recommend(1_000_000, 384, 1)
    with pytest.raises(ValueError, match='dim must be positive'):
        recommend(10, 0)


def test_without_a_gpu_the_cpu_stays(monkeypatch):
    monkeypatch.setattr(faiss, 'get_num_gpus', lambda: 0)
    gallery = filled()
    with pytest.raises(RuntimeError, match='FAISS sees 0 GPUs'):
        gallery.to_gpu()
    assert gallery.search(vectors(300)[:1], 1).ids[0, 0] == 0


@pytest.mark.parametrize('factory', EXACT)
@pytest.mark.parametrize('start', [0, 40])
def test_an_interrupted_add_adds_nothing(factory, start, monkeypatch, tmp_path):
    from vitdown.evaluation.index import gallery_index

    gallery = GalleryIndex(DIM, factory, effort=400)
    gallery.train(vectors(300))
    if start:
        gallery.add(vectors(start), metadata=columns(start))
    prepare, calls = gallery_index.prepared, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return prepare(*args)

    monkeypatch.setattr(gallery_index, '_BLOCK', 10)
    monkeypatch.setattr(gallery_index, 'prepared', interrupted)
    with pytest.raises(KeyboardInterrupt):
        gallery.add(vectors(25, seed=1), metadata=columns(25))
    monkeypatch.undo()
    assert len(gallery) == start
    ids = gallery.add(vectors(25, seed=2), metadata=columns(25))
    assert ids.tolist() == list(range(start, start + 25))
    for found in (gallery, None):
        if found is None:
            gallery.save(tmp_path)
            found = GalleryIndex.load(tmp_path)
        result = found.search(vectors(25, seed=2), 1)
        assert np.array_equal(result.ids[:, 0], ids)
        assert np.array_equal(result.metadata['camera'][:, 0], columns(25)['camera'])
        found.compact()
        assert np.array_equal(found.search(vectors(25, seed=2), 1).ids[:, 0], ids)


def test_numbers_that_do_not_fit_are_named():
    gallery = filled(count=20)
    for ids, error, message in [
        ([0.5], TypeError, 'ids must be integers, not float64'),
        (np.array([2**63 + 5], np.uint64), ValueError, r'ids must be below 2\*\*63 - 1'),
        ([2**63 - 1], ValueError, r'ids must be below 2\*\*63 - 1'),
    ]:
        with pytest.raises(error, match=message):
            gallery.remove(ids)
        with pytest.raises(error, match=message):
            gallery.add(vectors(1), ids=ids, metadata=columns(1))
    for k in (1.5, '3'):
        with pytest.raises(ValueError, match='k must be at least 1, an integer'):
            gallery.search(vectors(1), k)
    with pytest.raises(ValueError, match='dim must be a positive integer, not 16.0'):
        GalleryIndex(16.0)
    with pytest.raises(ValueError, match="'time' holds times, the condition .*yesterday.* is none"):
        gallery.search(vectors(1), 1, {'time': 'yesterday'})
    assert len(gallery) == 20


def test_recommended_lists_can_be_trained():
    for size in (2_000_000, 10**8, 10**10):
        gallery = GalleryIndex(8, recommend(size, 8).factory)
        lists = gallery._index.nlist
        assert lists <= 65_536
        assert size >= 39 * lists
