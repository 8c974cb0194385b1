"""Datasets with one folder per subset and identity and camera in the file names."""

import os.path as osp
from collections.abc import Iterator, Mapping

from .base import JUNK_IDENTITY, ReIDDataset, Sample
from .files import list_images, parse_name, zero_based_camera


class FileNameReIDDataset(ReIDDataset):
    """Base of Market-1501 and the many datasets that follow its layout.

    Subclasses state the folders, the number of cameras and the pattern of the file names, whose
    two groups are the identity and the camera, counted from 1.
    """

    folders: Mapping[str, str] = {
        'train': 'bounding_box_train',
        'query': 'query',
        'gallery': 'bounding_box_test',
    }
    pattern = r'(-?\d+)_c(\d)'
    num_cameras: int

    def folder_of(self, part: str) -> str:
        """Existing folder of a subset."""
        return self.path_to(self.folders[part])

    def scan(self, part: str) -> Iterator[Sample]:
        folder = self.folder_of(part)
        for name in list_images(folder):
            path = osp.join(folder, name)
            identity, camera = parse_name(name, self.pattern, path)
            if identity == JUNK_IDENTITY:
                continue
            camera_id = zero_based_camera(camera, self.num_cameras, path)
            yield {'img_path': path, 'identity': identity, 'camera_id': camera_id}
