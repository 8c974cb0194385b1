"""Geometric transforms that mmcv and mmpretrain lack."""

import mmcv
from mmcv.transforms import BaseTransform

from vitdown.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Letterbox(BaseTransform):
    """Resize to fit into (H, W) with the aspect ratio kept, and pad the rest evenly.

    ``mmcv.Resize(keep_ratio=True)`` reads its scale as (long side, short side), so a landscape
    image would not fit into a portrait frame; this transform fits any image into the frame.

    **Required Keys:** ``img``

    **Modified Keys:** ``img``, ``img_shape``, ``scale_factor`` ((w, h))

    Args:
        size: Height and width of the result, in pixels.
        pad_val: Grey value of the padding, 0..255.
        interpolation: Interpolation, ``'bilinear'``, ``'bicubic'``, ...
        backend: ``'pillow'`` (antialiased) or ``'cv2'``.
    """

    def __init__(
        self,
        size: tuple[int, int],
        pad_val: float = 0,
        interpolation: str = 'bilinear',
        backend: str = 'pillow',
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f'size must be (height, width), both positive, got {size}.')
        self.size = tuple(size)
        self.pad_val = pad_val
        self.interpolation = interpolation
        self.backend = backend

    def transform(self, results: dict) -> dict:
        img = results['img']
        height, width = self.size
        scale = min(height / img.shape[0], width / img.shape[1])
        new_h = min(height, max(1, round(img.shape[0] * scale)))
        new_w = min(width, max(1, round(img.shape[1] * scale)))
        img, scale_w, scale_h = mmcv.imresize(
            img,
            (new_w, new_h),
            return_scale=True,
            interpolation=self.interpolation,
            backend=self.backend,
        )
        left, top = (width - new_w) // 2, (height - new_h) // 2
        padding = (left, top, width - new_w - left, height - new_h - top)
        # OpenCV would pad only the first channel with a single number.
        pad_val = (self.pad_val,) * 3
        results['img'] = mmcv.impad(img, padding=padding, pad_val=pad_val)
        results['img_shape'] = self.size
        results['scale_factor'] = (scale_w, scale_h)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(size={self.size}, pad_val={self.pad_val}, '
            f'interpolation={self.interpolation!r}, backend={self.backend!r})'
        )
