"""What all re-ID datasets share: protocol, relabelling, statistics and error messages."""

import logging
import os
import os.path as osp
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, force_full_init
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.logging import print_log
from tqdm import tqdm

from .transforms.decoding import CorruptImageError, decode_image, read_bytes

JUNK_IDENTITY = -1
UNKNOWN = -1
Sample = dict[str, Any]


class ReIDDataset(BaseDataset):
    """Base class of all re-ID datasets.

    A sample is a dict with

    - ``img_path`` (str), or ``img_bytes`` (an encoded image) or ``img`` ((H, W, 3) uint8 BGR) with
      ``img_path`` as a readable name;
    - ``identity`` (int): as in the dataset; ``gt_label`` (int, subset ``'train'`` only): 0..n-1,
      in the order of the sorted identities;
    - ``camera_id`` and ``view_id`` (int, 0-based, -1 if unknown);
    - ``subset``: ``'train'``, ``'query'``, ``'gallery'`` or ``'both'`` (the image is a query and
      belongs to the gallery of all the other queries).

    Samples come sorted by path (queries before the gallery), whatever order the file system has.
    Junk images (identity -1) are left out; distractors (e.g. identity 0 of Market-1501) stay in
    the gallery. On loading, the counts of identities, images and cameras are logged, and compared
    with the published ones where these are known.

    After loading, ``metainfo`` has ``dataset_name``, ``num_identities``, ``num_cameras`` and
    ``num_views``. The latter two are sizes of a look-up table for the ids of this subset, that is
    the highest id + 1 (0 if no id is known).

    Subclasses implement :meth:`scan`, and state :attr:`layout` and :attr:`published`.

    Args:
        data_root: Folder of the dataset.
        subset: ``'train'``, ``'query'``, ``'gallery'``, or ``'test'``: the queries followed by the
            gallery.
        pipeline: Transforms, starting with :class:`LoadReIDImage`.
        corrupt: What to do about images that can't be decoded: ``'error'`` fails when the image
            is needed; ``'skip'`` decodes every image on loading (in threads; under distributed
            training each rank takes its share) and leaves out the bad ones.
        metainfo: Further meta information.
        ann_file: Annotation file, for datasets that have one; relative to ``data_root``.
        indices: Take only the first n samples, or those with the given indices.
        serialize_data: Keep the samples serialised, so that worker processes share their memory.
        test_mode: As in MMEngine: the pipeline may not return None.
        lazy_init: Load at first use.
        max_refetch: Number of other random samples to try when a *transform* returns None. With 0
            (default) that is an error, too.

    Raises:
        FileNotFoundError: ``data_root`` lacks a folder or file of the layout.
        ValueError: Unknown subset, empty split, unknown camera, unreadable file name.
    """

    #: Folders and files expected below ``data_root``, shown when something is missing.
    layout: str = ''
    #: ``{subset: (identities, images, cameras)}`` as published; None where not known for sure.
    published: Mapping[str, tuple[int | None, int | None, int | None]] = {}
    #: What the user may ask for, and the parts that each is made of.
    parts: Mapping[str, tuple[str, ...]] = {
        'train': ('train',),
        'query': ('query',),
        'gallery': ('gallery',),
        'test': ('query', 'gallery'),
    }

    def __init__(
        self,
        data_root: str,
        subset: str,
        pipeline: Sequence = (),
        corrupt: str = 'error',
        metainfo: Mapping | None = None,
        ann_file: str = '',
        indices: int | Sequence[int] | None = None,
        serialize_data: bool = True,
        test_mode: bool = False,
        lazy_init: bool = False,
        max_refetch: int = 0,
    ) -> None:
        name = type(self).__name__
        if subset not in self.parts:
            raise ValueError(f'{name}: subset must be one of {list(self.parts)}, got {subset!r}.')
        if corrupt not in ('error', 'skip'):
            raise ValueError(f"{name}: corrupt must be 'error' or 'skip', got {corrupt!r}.")
        self.subset = subset
        self.corrupt = corrupt
        self._statistics: dict[str, dict[str, int]] = {}
        super().__init__(
            ann_file=ann_file,
            metainfo=metainfo,
            data_root=osp.expanduser(data_root),
            data_prefix={},
            indices=indices,
            serialize_data=serialize_data,
            pipeline=pipeline,
            test_mode=test_mode,
            lazy_init=lazy_init,
            max_refetch=max_refetch,
        )

    def scan(self, part: str) -> Iterable[Sample]:
        """Yield the raw samples of ``'train'``, ``'query'``, ``'gallery'`` or ``'both'``.

        Order, junk, labels and checks are the base class' business.

        Returns:
            Dicts with ``img_path`` and ``identity``, optionally ``camera_id``, ``view_id`` and
            whatever else a pipeline may want.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement scan(part).')

    def load_data_list(self) -> list[Sample]:
        """Scan, check, sort and label the samples of the subset."""
        samples = []
        for part in self.parts[self.subset]:
            found = [
                {'camera_id': UNKNOWN, 'view_id': UNKNOWN, 'subset': part, **sample}
                for sample in self.scan(part)
            ]
            samples += sorted(found, key=lambda sample: sample['img_path'])
        samples = [sample for sample in samples if sample['identity'] != JUNK_IDENTITY]
        if self.corrupt == 'skip':
            samples = self._without_corrupt(samples)
        self._check_not_empty(samples)

        identities = sorted({sample['identity'] for sample in samples})
        if self.subset == 'train':
            labels = {identity: label for label, identity in enumerate(identities)}
            for sample in samples:
                sample['gt_label'] = labels[sample['identity']]
        self._metainfo.setdefault('dataset_name', type(self).__name__)
        self._metainfo.update(
            num_identities=len(identities),
            num_cameras=1 + max(sample['camera_id'] for sample in samples),
            num_views=1 + max(sample['view_id'] for sample in samples),
        )
        self._statistics = self._count(samples)
        print_log(self._statistics_table(), logger='current')
        self._warn_about_counts()
        self._warn_about_lonely_queries(samples)
        return samples

    @force_full_init
    def statistics(self) -> dict[str, dict[str, int]]:
        """Counts of the loaded subset: ``{part: dict(identities=, images=, cameras=)}``.

        They describe the whole subset, before ``indices`` takes a selection.
        """
        return {part: dict(counts) for part, counts in self._statistics.items()}

    def annotation(self, idx: int) -> Sample:
        """Sample without an image, for code that only needs the labels."""
        return BaseDataset.get_data_info(self, idx)

    @force_full_init
    def get_gt_labels(self) -> np.ndarray:
        """Training labels of all samples, (len(self),) int64, without loading images.

        Raises:
            ValueError: The subset is not ``'train'``.
        """
        if self.subset != 'train':
            raise ValueError(
                f'{type(self).__name__}: subset {self.subset!r} has no training labels; '
                "only subset='train' has."
            )
        infos = (self.annotation(index) for index in range(len(self)))
        return np.fromiter((info['gt_label'] for info in infos), np.int64, len(self))

    def get_cat_ids(self, idx: int) -> list[int]:
        """Label of a training sample, else its identity, for mmengine's class-balanced wrapper."""
        info = self.annotation(idx)
        return [info['gt_label' if 'gt_label' in info else 'identity']]

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline.

        Raises:
            RuntimeError: A transform returned None and ``max_refetch`` is 0.
        """
        data = super().prepare_data(idx)
        if data is None and self.max_refetch == 0:
            path = self.annotation(idx)['img_path']
            raise RuntimeError(
                f'{type(self).__name__}: the pipeline returned None for {path}. Set max_refetch '
                'to draw another sample instead, if a transform rejects samples on purpose.'
            )
        return data

    def check_image(self, sample: Sample) -> None:
        """Raise CorruptImageError unless the sample's image can be decoded."""
        if 'img' in sample:
            return
        data = sample.get('img_bytes')
        if data is None:
            data = read_bytes(sample['img_path'])
        decode_image(data, sample['img_path'])

    # Helpers for subclasses

    def path_to(self, *names: str) -> str:
        """Path of an existing folder or file below ``data_root``.

        Raises:
            FileNotFoundError: It does not exist; the message shows the expected layout.
        """
        path = osp.join(self.data_root, *names)
        if osp.exists(path):
            return path
        missing = path if osp.isdir(self.data_root) else self.data_root
        message = f'{type(self).__name__}: {missing!r} does not exist'
        if missing != path:
            message += f" (data_root; it should contain '{osp.join(*names)}')"
        raise FileNotFoundError(
            f'{message}. Set data_root to the folder that has this layout:\n{self.layout}'
        )

    @property
    def _origin(self) -> str:
        return self.ann_file or self.data_root

    def _check_not_empty(self, samples: list[Sample]) -> None:
        present = {sample['subset'] for sample in samples}
        for role in ('train', 'query', 'gallery'):
            accepted = {role} if role == 'train' else {role, 'both'}
            wanted = accepted.intersection(self.parts[self.subset])
            if wanted and not wanted & present:
                raise ValueError(
                    f'{type(self).__name__}: no {role} images found in {self._origin}. '
                    f'Expected layout:\n{self.layout}'
                )

    def _without_corrupt(self, samples: list[Sample]) -> list[Sample]:
        rank, world_size = get_dist_info()

        def problem(index: int) -> int | None:
            try:
                self.check_image(samples[index])
            except CorruptImageError:
                return index
            return None

        mine = range(rank, len(samples), world_size)
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            checked = tqdm(
                pool.map(problem, mine),
                desc=f'{type(self).__name__}: checking images',
                total=len(mine),
                disable=None if rank == 0 else True,
                leave=False,
            )
            bad = [index for index in checked if index is not None]
        # All ranks must drop the same samples, or their labels and samplers would differ.
        bad = sorted(index for part in all_gather_object(bad) for index in part)
        if bad:
            names = ', '.join(samples[index]['img_path'] for index in bad[:5])
            print_log(
                f'{type(self).__name__}: left out {len(bad)} of {len(samples)} images that are '
                f"missing or can't be decoded: {names}{', ...' if len(bad) > 5 else ''}",
                logger='current',
                level=logging.WARNING,
            )
        dropped = set(bad)
        return [sample for index, sample in enumerate(samples) if index not in dropped]

    def _count(self, samples: list[Sample]) -> dict[str, dict[str, int]]:
        return {
            part: count_samples([sample for sample in samples if sample['subset'] == part])
            for part in self.parts[self.subset]
            if any(sample['subset'] == part for sample in samples)
        }

    def _statistics_table(self) -> str:
        width = max(10, *(len(part) for part in self._statistics))
        origin = f' ({self._origin})' if self._origin else ''
        lines = [f'{type(self).__name__}{origin}']
        lines.append(f'  {"subset":<{width}} {"identities":>10} {"images":>8} {"cameras":>8}')
        for part, counts in self._statistics.items():
            lines.append(
                f'  {part:<{width}} {counts["identities"]:>10} {counts["images"]:>8} '
                f'{counts["cameras"]:>8}'
            )
        return '\n'.join(lines)

    def _warn_about_counts(self) -> None:
        differences = []
        for part, expected in self.published.items():
            found = self._statistics.get(part)
            if found is None:
                continue
            for what, number in zip(('identities', 'images', 'cameras'), expected):
                if number is not None and number != found[what]:
                    differences.append(f'{part} {what}: {found[what]} (published: {number})')
        if differences:
            print_log(
                f'{type(self).__name__}: the data in {self._origin} differ from the published '
                f'split, so figures are not comparable with published ones: '
                f'{"; ".join(differences)}.',
                logger='current',
                level=logging.WARNING,
            )

    def _warn_about_lonely_queries(self, samples: list[Sample]) -> None:
        queries = [sample for sample in samples if sample['subset'] in ('query', 'both')]
        gallery = Counter(
            sample['identity'] for sample in samples if sample['subset'] in ('gallery', 'both')
        )
        if not queries or not gallery:
            return
        lonely = [
            sample['identity']
            for sample in queries
            if gallery[sample['identity']] == (sample['subset'] == 'both')
        ]
        if lonely:
            names = sorted(set(lonely))
            print_log(
                f'{type(self).__name__}: {len(lonely)} queries have no other image of their '
                f'identity in the gallery and will be skipped by the evaluation protocol; '
                f'identities {", ".join(map(str, names[:5]))}{", ..." if len(names) > 5 else ""}.',
                logger='current',
                level=logging.WARNING,
            )


def count_samples(samples: Sequence[Sample]) -> dict[str, int]:
    """Numbers of distinct identities, images, and distinct known cameras."""
    return {
        'identities': len({sample['identity'] for sample in samples}),
        'images': len(samples),
        'cameras': len({sample['camera_id'] for sample in samples} - {UNKNOWN}),
    }
