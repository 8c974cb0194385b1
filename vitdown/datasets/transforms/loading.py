"""Loading of images in re-ID pipelines."""

from mmcv.transforms import LoadImageFromFile

from vitdown.registry import TRANSFORMS

from .decoding import DECODERS, decode_image, read_bytes, to_bgr_uint8


@TRANSFORMS.register_module()
class LoadReIDImage(LoadImageFromFile):
    """Load an image as 8-bit BGR, whatever the file holds.

    The image is taken from the first of these keys that the sample has: ``img`` (an array),
    ``img_bytes`` (an encoded image, ``img_path`` then only names it) or ``img_path``.

    **Required Keys:** one of ``img``, ``img_bytes``, ``img_path``

    **Modified Keys:** ``img`` ((H, W, 3) uint8, BGR), ``img_shape`` and ``ori_shape`` ((H, W))

    Args:
        imdecode_backend: ``'pillow'`` (default, what the published re-ID recipes use) or
            ``'cv2'``. OpenCV does not notice a truncated JPEG.
        backend_args: MMEngine's file backend, e.g. ``dict(backend='petrel')``; local disk if None.

    Raises:
        CorruptImageError: The file is missing, empty, truncated or not an image.

    Example:
        >>> import numpy as np
        >>> grey = np.zeros((4, 2), dtype=np.uint8)
        >>> LoadReIDImage()(dict(img=grey))['img'].shape
        (4, 2, 3)
    """

    def __init__(self, imdecode_backend: str = 'pillow', backend_args: dict | None = None) -> None:
        if imdecode_backend not in DECODERS:
            raise ValueError(
                f'imdecode_backend must be one of {sorted(DECODERS)}, got {imdecode_backend!r}.'
            )
        super().__init__(imdecode_backend=imdecode_backend, backend_args=backend_args)

    def transform(self, results: dict) -> dict:
        name = results.get('img_path', 'image without img_path')
        if 'img' in results:
            img = to_bgr_uint8(results['img'], name)
        else:
            data = results.get('img_bytes')
            if data is None:
                data = read_bytes(results['img_path'], self.backend_args)
            img = decode_image(data, name, self.imdecode_backend)
        results['img'] = img
        results['img_shape'] = img.shape[:2]
        results['ori_shape'] = img.shape[:2]
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(imdecode_backend={self.imdecode_backend!r}, '
            f'backend_args={self.backend_args})'
        )
