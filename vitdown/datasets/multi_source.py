"""Training on several datasets at once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitdown.registry import DATASETS

from .base import UNKNOWN, ReIDDataset, Sample, count_samples


@DATASETS.register_module()
class MultiSourceReID(ReIDDataset):
    """Training subsets of several datasets as one, with identities and cameras kept apart.

    The identities of each source follow those of the sources before it, and so do the cameras
    (unknown ones stay unknown). Views mean the same in all sources. A sample's ``source`` says
    where it comes from.

    Args:
        datasets: Configs of the sources, without a pipeline and with ``subset='train'`` (default).
        pipeline: Transforms of all samples.
        **kwargs: Further arguments of :class:`ReIDDataset`.
    """

    parts = {'train': ('train',)}

    def __init__(self, datasets: Sequence[Mapping], pipeline: Sequence = (), **kwargs: Any) -> None:
        if not datasets:
            raise ValueError('MultiSourceReID: datasets is empty.')
        for index, config in enumerate(datasets):
            if config.get('subset', 'train') != 'train':
                raise ValueError(
                    f'MultiSourceReID: datasets[{index}] has subset={config["subset"]!r}; only '
                    "'train' can be joined. Test on one dataset at a time."
                )
            if config.get('pipeline'):
                raise ValueError(
                    f'MultiSourceReID: datasets[{index}] has a pipeline of its own; give the '
                    'pipeline to MultiSourceReID.'
                )
        self._configs = [{'subset': 'train', **config} for config in datasets]
        super().__init__('', 'train', pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[Sample]:
        self.sources = [DATASETS.build(config) for config in self._configs]
        for index, source in enumerate(self.sources):
            if not isinstance(source, ReIDDataset):
                raise TypeError(
                    f'MultiSourceReID: datasets[{index}] is a {type(source).__name__}, expected a '
                    're-ID dataset of vitdown.'
                )
        self._source_statistics: dict[str, dict[str, int]] = {}
        return super().load_data_list()

    def scan(self, part: str) -> Iterator[Sample]:
        identity_offset = camera_offset = 0
        for number, source in enumerate(self.sources):
            samples = []
            for index in range(len(source)):
                info = source.annotation(index)
                camera = info['camera_id']
                samples.append(
                    {
                        'img_path': info['img_path'],
                        'identity': identity_offset + info['gt_label'],
                        'camera_id': UNKNOWN if camera == UNKNOWN else camera_offset + camera,
                        'view_id': info['view_id'],
                        'source': number,
                        'source_index': index,
                    }
                )
            identity_offset += source.metainfo['num_identities']
            camera_offset += source.metainfo['num_cameras']
            name = f'{number}: {source.metainfo["dataset_name"]}'
            self._source_statistics[name] = count_samples(samples)
            yield from samples

    def get_data_info(self, idx: int) -> Sample:
        info = super().get_data_info(idx)
        # The source may add the image itself to what it knows about the sample.
        return {**self.sources[info['source']].get_data_info(info['source_index']), **info}

    def check_image(self, sample: Sample) -> None:
        source = self.sources[sample['source']]
        source.check_image(source.annotation(sample['source_index']))

    def _count(self, samples: list[Sample]) -> dict[str, dict[str, int]]:
        return {**self._source_statistics, **super()._count(samples)}
