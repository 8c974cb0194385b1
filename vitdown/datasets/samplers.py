"""Sampling of batches that hold K images of each of P identities."""

from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from vitdown.registry import DATA_SAMPLERS


def training_labels(dataset: Sized) -> np.ndarray:
    """Labels of all samples, (len(dataset),) int64, without loading images.

    Works with the datasets of vitdown and mmpretrain and MMEngine's wrappers of them.

    Raises:
        TypeError: The dataset can't tell its samples' ``gt_label``.
    """
    if hasattr(dataset, 'get_gt_labels'):
        return np.asarray(dataset.get_gt_labels(), dtype=np.int64)
    if not hasattr(dataset, 'get_data_info'):
        raise TypeError(
            f'IdentitySampler: {type(dataset).__name__} has neither get_gt_labels() nor '
            'get_data_info(index), so labels are unknown before images are loaded.'
        )
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    labels = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if 'gt_label' not in info:
            raise TypeError(
                f"IdentitySampler: sample {index} of {type(dataset).__name__} has no 'gt_label'. "
                'Is it a training set?'
            )
        labels.append(int(info['gt_label']))
    return np.asarray(labels, dtype=np.int64)


def draw_batches(
    indices_of: list[np.ndarray], num_identities: int, num_instances: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw one epoch of batches of P identities x K images.

    Each identity's images are shuffled and cut into chunks of K; an incomplete chunk is left out,
    and an identity with fewer than K images gets one chunk, drawn with replacement. While at
    least P identities have chunks left, a batch takes one chunk of each of P of them, drawn
    uniformly. (TransReID's sampler, He et al., ICCV 2021.)

    Args:
        indices_of: Sample indices of each identity.
        num_identities: P.
        num_instances: K.
        rng: Source of randomness.

    Returns:
        (batches, P * K) int64 sample indices; the K images of an identity are neighbours.
    """
    chunks = []
    for indices in indices_of:
        if len(indices) < num_instances:
            drawn = rng.choice(indices, num_instances, replace=True)
        else:
            drawn = rng.permutation(indices)[: len(indices) // num_instances * num_instances]
        chunks.append(drawn.reshape(-1, num_instances))
    left = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
    available = np.arange(len(chunks))
    batches = []
    while len(available) >= num_identities:
        chosen = rng.choice(available, num_identities, replace=False)
        left[chosen] -= 1
        batches.append(np.concatenate([chunks[identity][left[identity]] for identity in chosen]))
        available = available[left[available] > 0]
    if not batches:
        return np.empty((0, num_identities * num_instances), dtype=np.int64)
    return np.stack(batches)


@DATA_SAMPLERS.register_module()
class IdentitySampler(Sampler):
    """Sample indices such that every batch has K images of each of P distinct identities.

    Use it with the data loader's ``batch_size`` equal to P x K (per GPU). See
    :func:`draw_batches` for the rule. Batches depend on ``seed`` and epoch only, and leave global
    random generators alone.

    How many batches an epoch has depends on the draw, so ``len`` is exact for the epoch that
    ``set_epoch`` set last, and may differ a little between epochs. Whatever reckons in epochs
    is fine with that. Schedules by iteration, and anything else that multiplies epochs with the
    length of the first one, want ``batches_per_epoch``.

    Under distributed training all ranks draw the same batches, and rank r of W takes the batches
    r, r + W, ...; at most W - 1 batches at the end are left out, so that all ranks have as many.

    Args:
        dataset: Training set; see :func:`training_labels`.
        num_identities: P, identities per batch. Give this or ``batch_size``.
        num_instances: K, images per identity.
        batch_size: P x K, instead of ``num_identities``.
        seed: Seed, the same on all ranks; by default a random one, which rank 0 shares.
        batches_per_epoch: Fixed number of batches per epoch and rank. A draw that has more is cut;
            one that has fewer is followed by another draw, so that an image may then occur twice.

    Raises:
        ValueError: Fewer than P identities, a batch size that K does not divide, too few batches
            for the number of ranks.
    """

    def __init__(
        self,
        dataset: Sized,
        num_identities: int | None = None,
        num_instances: int = 4,
        batch_size: int | None = None,
        seed: int | None = None,
        batches_per_epoch: int | None = None,
    ) -> None:
        self.num_instances = num_instances
        self.num_identities = _identities_per_batch(num_identities, num_instances, batch_size)
        if batches_per_epoch is not None and batches_per_epoch < 1:
            raise ValueError(
                f'IdentitySampler: batches_per_epoch must be positive, got {batches_per_epoch}.'
            )
        self.batches_per_epoch = batches_per_epoch
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0

        labels = training_labels(dataset)
        order = np.argsort(labels, kind='stable')
        starts = np.flatnonzero(np.diff(labels[order])) + 1
        self._indices_of = np.split(order, starts) if len(order) else []
        if len(self._indices_of) < self.num_identities:
            raise ValueError(
                f'IdentitySampler: a batch needs {self.num_identities} identities, the dataset '
                f'has {len(self._indices_of)}. Lower num_identities (and with it the batch size).'
            )
        self._plan = self._draw()

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of an epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._plan = self._draw()

    def __iter__(self) -> Iterator[int]:
        return iter(self._plan.ravel().tolist())

    def __len__(self) -> int:
        """Number of samples of this rank in the current epoch."""
        return self._plan.size

    def _draw(self) -> np.ndarray:
        """Batches of this rank in the current epoch, (batches, P * K)."""
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self._draw_once(rng)
        if self.batches_per_epoch is not None:
            wanted = self.batches_per_epoch * self.world_size
            while len(batches) < wanted:
                batches = np.concatenate([batches, self._draw_once(rng)])
            batches = batches[:wanted]
        per_rank = len(batches) // self.world_size
        if per_rank == 0:
            raise ValueError(
                f'IdentitySampler: an epoch has {len(batches)} batches, fewer than the '
                f'{self.world_size} processes. Lower num_identities or the number of processes, '
                'or set batches_per_epoch.'
            )
        return batches[self.rank : per_rank * self.world_size : self.world_size]

    def _draw_once(self, rng: np.random.Generator) -> np.ndarray:
        return draw_batches(self._indices_of, self.num_identities, self.num_instances, rng)


def _identities_per_batch(
    num_identities: int | None, num_instances: int, batch_size: int | None
) -> int:
    if num_instances < 1:
        raise ValueError(f'IdentitySampler: num_instances must be positive, got {num_instances}.')
    if (num_identities is None) == (batch_size is None):
        raise ValueError('IdentitySampler: give either num_identities or batch_size.')
    if batch_size is not None:
        if batch_size < 1 or batch_size % num_instances:
            raise ValueError(
                f'IdentitySampler: batch_size {batch_size} is not a multiple of num_instances '
                f'{num_instances}.'
            )
        num_identities = batch_size // num_instances
    if num_identities is None or num_identities < 1:
        raise ValueError(f'IdentitySampler: num_identities must be positive, got {num_identities}.')
    return num_identities
