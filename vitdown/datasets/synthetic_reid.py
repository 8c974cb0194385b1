"""The embedded re-ID set, drawn on first use."""

import os.path as osp
from collections.abc import Iterator
from typing import Any

from vitdown.registry import DATASETS

from .base import Sample
from .file_name_dataset import FileNameReIDDataset
from .synthetic import SyntheticSettings, generate_synthetic_reid


@DATASETS.register_module()
class SyntheticReID(FileNameReIDDataset):
    """Procedural persons or vehicles that differ by small parts only.

    Badges, stripes, bags, plates and other marks make the identity; colours and silhouettes are
    shared by groups. Four cameras (by default) see everybody in their own colours, before their own
    background, from changing sides, blurred, noisy and partly hidden. The images are drawn on first
    use below ``data_root``, in a folder named after the settings, as JPEG files in the convention
    of Market-1501; later uses, also by other processes, read them.

    Args:
        data_root: Folder for synthetic sets.
        subset: See :class:`ReIDDataset`.
        settings: Entries of :class:`SyntheticSettings` that differ from the defaults.
        draw: Draw a set that is not there yet; False takes that for an error and writes nothing.
        **kwargs: Further arguments of :class:`ReIDDataset`.

    Raises:
        FileNotFoundError: The set is not there and ``draw`` is False.
    """

    layout = 'nothing: the images are drawn on first use'

    def __init__(
        self,
        data_root: str,
        subset: str,
        settings: dict | None = None,
        draw: bool = True,
        **kwargs: Any,
    ) -> None:
        self.settings = SyntheticSettings(**(settings or {}))
        self.draw = draw
        self.num_cameras = self.settings.num_cameras
        super().__init__(osp.join(data_root, self.settings.name), subset, **kwargs)

    def scan(self, part: str) -> Iterator[Sample]:
        if not self.draw and not osp.isdir(self.data_root):
            raise FileNotFoundError(
                f'SyntheticReID: {self.data_root!r} does not exist, and drawing it is not allowed '
                'here. Draw it first with python tools/dataset_converters/make_synthetic_reid.py, '
                'or set settings to those of a set that is there.'
            )
        generate_synthetic_reid(self.data_root, self.settings)
        yield from super().scan(part)
