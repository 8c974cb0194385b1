"""Random erasing as the published re-ID recipes do it."""
# NumPy's global generator is the one that MMEngine seeds in every worker.

from collections.abc import Sequence

import numpy as np
from mmcv.transforms.utils import cache_randomness
from mmpretrain.datasets.transforms import RandomErasing

from vitdown.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PixelRandomErasing(RandomErasing):
    """Overwrite one random box with noise that is N(0, 1) per pixel *after* normalisation.

    Random erasing (Zhong et al., AAAI 2020) in the form TransReID and DCAL train with: pixels
    are drawn from N(0, 1) in the normalised image. The pipeline runs before the data
    preprocessor normalises, so the noise is written as ``mean + std * N(0, 1)`` into a float32
    image, not clipped to 0..255. ``mean`` and ``std`` must therefore be the preprocessor's.

    Unlike the parent class, a box that does not fit is drawn again instead of being cut, so the
    erased area follows the stated distribution.

    **Modified Keys:** ``img`` ((H, W, 3), becomes float32)

    Args:
        erase_prob: Probability that an image is erased: 0.5 in TransReID's ViT-B recipes, 0.8
            with DeiT and ViT-S.
        area_range: Smallest and largest box, as a fraction of the image.
        aspect_range: Smallest and largest height / width of the box, drawn log-uniformly.
        mean: Mean of the normalisation, a number or one per channel of the pipeline's BGR image.
        std: Standard deviation of the normalisation, likewise.
        max_tries: Boxes to draw before an image is left as it is.
    """

    def __init__(
        self,
        erase_prob: float = 0.5,
        area_range: tuple[float, float] = (0.02, 1 / 3),
        aspect_range: tuple[float, float] = (0.3, 1 / 0.3),
        mean: float | Sequence[float] = 127.5,
        std: float | Sequence[float] = 127.5,
        max_tries: int = 10,
    ) -> None:
        super().__init__(
            erase_prob=float(erase_prob),
            min_area_ratio=float(area_range[0]),
            max_area_ratio=float(area_range[1]),
            aspect_range=tuple(float(x) for x in aspect_range),
            mode='rand',
            fill_color=mean,
            fill_std=std,
        )
        if max_tries < 1:
            raise ValueError(f'max_tries must be at least 1, got {max_tries}.')
        self.max_tries = max_tries

    @cache_randomness
    def random_patch(self, img_h: int, img_w: int) -> tuple[int, int, int, int] | None:
        """Draw (top, left, height, width) of a box inside the image, None if none fits."""
        log_aspect = np.log(self.aspect_range)
        for _ in range(self.max_tries):
            area = img_h * img_w * np.random.uniform(self.min_area_ratio, self.max_area_ratio)
            aspect = np.exp(np.random.uniform(*log_aspect))
            h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < h < img_h and 0 < w < img_w:
                top = np.random.randint(0, img_h - h + 1)
                left = np.random.randint(0, img_w - w + 1)
                return top, left, h, w
        return None

    def _fill_pixels(self, img: np.ndarray, top: int, left: int, h: int, w: int) -> np.ndarray:
        noise = np.random.standard_normal((h, w, 3))
        img[top : top + h, left : left + w] = np.multiply(self.fill_std, noise) + self.fill_color
        return img

    def transform(self, results: dict) -> dict:
        # Untouched images become float32 too: the images of a batch are stacked.
        img = results['img'].astype(np.float32)
        if not self.random_disable():
            box = self.random_patch(*img.shape[:2])
            if box is not None:
                img = self._fill_pixels(img, *box)
        results['img'] = img
        return results
