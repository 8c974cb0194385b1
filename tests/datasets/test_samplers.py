"""The P x K rule of the identity sampler."""

from collections import Counter

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset

from vitdown.datasets import IdentitySampler, Market1501, samplers, training_labels

P, K = 4, 3


class Labelled:
    """The least that the sampler needs."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def get_data_info(self, index):
        return dict(gt_label=self.labels[index])


def random_labels(seed, identities=11, largest=14):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, largest, identities)
    return rng.permutation(np.repeat(np.arange(identities) * 7, counts))


def batches_of(sampler, batch_size=P * K):
    return np.array(list(sampler)).reshape(-1, batch_size)


@pytest.mark.parametrize('seed', range(20))
def test_p_times_k(seed):
    labels = random_labels(seed)
    counts = Counter(labels.tolist())
    sampler = IdentitySampler(Labelled(labels), P, K, seed=seed)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = batches_of(sampler)
        assert len(sampler) == batches.size
        chunks = Counter()
        for batch in batches:
            of_batch = Counter(labels[batch].tolist())
            assert len(of_batch) == P
            assert set(of_batch.values()) == {K}
            chunks.update(of_batch.keys())
            for identity in of_batch:
                images = batch[labels[batch] == identity]
                assert counts[identity] < K or len(set(images)) == K
        for identity, number in chunks.items():
            assert number <= max(1, counts[identity] // K)
        # It goes on while at least P identities have chunks left.
        left = [i for i in counts if chunks[i] < max(1, counts[i] // K)]
        assert len(left) < P
        # No image twice, but for identities with fewer than K.
        used = Counter(i for i in batches.ravel() if counts[labels[i]] >= K)
        assert not used or max(used.values()) == 1


def test_depends_on_seed_and_epoch_only():
    labels = Labelled(random_labels(0))

    def draw(seed, epoch):
        sampler = IdentitySampler(labels, P, K, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    state = np.random.get_state()[1].copy()
    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(1, 3)
    assert draw(1, 2) != draw(2, 2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)

    sampler = IdentitySampler(labels, P, K, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(5)
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_the_batches(monkeypatch, world_size):
    labels = Labelled(random_labels(3, identities=30))
    everything = batches_of(IdentitySampler(labels, P, K, seed=9))
    per_rank = len(everything) // world_size
    for rank in range(world_size):
        monkeypatch.setattr(samplers, 'get_dist_info', lambda rank=rank: (rank, world_size))
        share = batches_of(IdentitySampler(labels, P, K, seed=9))
        np.testing.assert_array_equal(share, everything[rank::world_size][:per_rank])


def test_random_seed_is_shared(monkeypatch):
    monkeypatch.setattr(samplers, 'sync_random_seed', lambda: 77)
    assert IdentitySampler(Labelled(random_labels(0)), P, K).seed == 77


@pytest.mark.parametrize('batches_per_epoch', [1, 2, 50])
def test_fixed_number_of_batches(monkeypatch, batches_per_epoch):
    monkeypatch.setattr(samplers, 'get_dist_info', lambda: (1, 2))
    labels = random_labels(4)
    sampler = IdentitySampler(Labelled(labels), P, K, batches_per_epoch=batches_per_epoch, seed=0)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = batches_of(sampler)
        assert len(batches) == batches_per_epoch
        assert all(set(Counter(labels[batch].tolist()).values()) == {K} for batch in batches)


def test_batch_size_instead_of_identities():
    sampler = IdentitySampler(Labelled(random_labels(0)), batch_size=P * K, num_instances=K)
    assert sampler.num_identities == P


def test_labels_of_wrapped_datasets(market):
    dataset = Market1501(str(market), 'train', lazy_init=True)
    joined = ConcatDataset(
        [Market1501(str(market), 'train', lazy_init=True) for _ in range(2)], lazy_init=True
    )
    np.testing.assert_array_equal(training_labels(dataset), [0, 1, 1, 2])
    np.testing.assert_array_equal(training_labels(joined), [0, 1, 1, 2] * 2)
    np.testing.assert_array_equal(training_labels(RepeatDataset(dataset, 2)), [0, 1, 1, 2] * 2)


def test_labels_of_mmpretrain_datasets(tmp_path):
    from mmpretrain.datasets import CustomDataset

    for name in ('a/1.jpg', 'a/2.jpg', 'b/1.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    np.testing.assert_array_equal(training_labels(CustomDataset(str(tmp_path))), [0, 0, 1])


class TestErrors:
    labels = Labelled(np.repeat(np.arange(5), 4))

    def test_too_few_identities(self):
        with pytest.raises(ValueError, match='needs 6 identities, the dataset has 5'):
            IdentitySampler(self.labels, 6, 4)

    def test_empty_dataset(self):
        with pytest.raises(ValueError, match='has 0'):
            IdentitySampler(Labelled([]), 2, 2)

    def test_batch_size(self):
        with pytest.raises(ValueError, match='batch_size 10 is not a multiple of num_instances 4'):
            IdentitySampler(self.labels, batch_size=10, num_instances=4)

    @pytest.mark.parametrize('sizes', [{}, dict(num_identities=2, batch_size=8)])
    def test_either_identities_or_batch_size(self, sizes):
        with pytest.raises(ValueError, match='either num_identities or batch_size'):
            IdentitySampler(self.labels, **sizes)

    @pytest.mark.parametrize(
        'sizes',
        [
            dict(num_identities=0),
            dict(num_identities=2, num_instances=0),
            dict(num_identities=2, batches_per_epoch=0),
        ],
    )
    def test_not_positive(self, sizes):
        with pytest.raises(ValueError, match='must be positive, got 0'):
            IdentitySampler(self.labels, **sizes)

    def test_more_ranks_than_batches(self, monkeypatch):
        monkeypatch.setattr(samplers, 'get_dist_info', lambda: (0, 8))
        with pytest.raises(ValueError, match='fewer than the 8 processes'):
            IdentitySampler(self.labels, 4, 4)

    def test_no_labels(self):
        with pytest.raises(TypeError, match='neither get_gt_labels'):
            IdentitySampler([1, 2, 3], 2)

    def test_sample_without_label(self):
        dataset = Labelled([0])
        dataset.get_data_info = lambda index: {}
        with pytest.raises(TypeError, match="no 'gt_label'"):
            IdentitySampler(dataset, 2)
