"""Re-ID datasets, the identity sampler, and transforms."""

from . import transforms
from .base import ReIDDataset
from .custom import CSVReIDDataset, FolderReIDDataset
from .file_name_dataset import FileNameReIDDataset
from .multi_source import MultiSourceReID
from .packed import Nyala, Omniglot, PackedReIDDataset
from .packed_cifar import PackedCIFAR
from .packed_flowers import Flowers17
from .person import CUHK03NP, MSMT17, DukeMTMCReID, Market1501, OccludedDuke
from .samplers import IdentitySampler, training_labels
from .synthetic_reid import SyntheticReID
from .vehicle import VehicleID, VeRi776, VERIWild

__all__ = [
    'CUHK03NP',
    'CSVReIDDataset',
    'DukeMTMCReID',
    'FileNameReIDDataset',
    'Flowers17',
    'FolderReIDDataset',
    'IdentitySampler',
    'MSMT17',
    'Market1501',
    'MultiSourceReID',
    'Nyala',
    'OccludedDuke',
    'Omniglot',
    'PackedCIFAR',
    'PackedReIDDataset',
    'ReIDDataset',
    'SyntheticReID',
    'VERIWild',
    'VeRi776',
    'VehicleID',
    'training_labels',
    'transforms',
]
