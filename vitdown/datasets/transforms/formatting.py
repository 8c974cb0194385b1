"""Packing of re-ID samples for the model."""

from collections.abc import Sequence

from mmpretrain.datasets.transforms import PackInputs

from vitdown.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackReIDInputs(PackInputs):
    """Pack an image and what evaluation has to know about it.

    Gives ``inputs`` ((3, H, W) tensor of the image's data type, BGR) and ``data_samples`` (an
    mmpretrain ``DataSample``: ``gt_label`` for training samples; ``identity``, ``camera_id``,
    ``view_id``, ``subset`` and ``img_path`` among its meta information).

    Args:
        input_key: The sample's key that holds the image.
        algorithm_keys: Further keys to store as data fields.
        meta_keys: Keys to store as meta information.
    """

    DEFAULT_META_KEYS = (
        *PackInputs.DEFAULT_META_KEYS,
        'identity',
        'camera_id',
        'view_id',
        'subset',
    )

    def __init__(
        self,
        input_key: str = 'img',
        algorithm_keys: Sequence[str] = (),
        meta_keys: Sequence[str] = DEFAULT_META_KEYS,
    ) -> None:
        super().__init__(input_key, algorithm_keys, meta_keys)
