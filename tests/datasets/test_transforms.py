"""Transforms, and a whole pipeline through MMEngine's data loader."""

import io

import mmcv
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmpretrain.datasets.transforms import RandomCrop
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image

from vitdown.datasets.transforms import (
    CorruptImageError,
    Letterbox,
    LoadReIDImage,
    PackReIDInputs,
    PixelRandomErasing,
)

RED_BGR = (0, 0, 255)


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


def encode(img: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    img.save(buffer, file_format, **options)
    return buffer.getvalue()


class TestLoading:
    @pytest.mark.parametrize('backend', ['pillow', 'cv2'])
    @pytest.mark.parametrize(
        ('mode', 'colour', 'file_format'),
        [
            ('RGB', (255, 0, 0), 'PNG'),
            ('RGB', (255, 0, 0), 'BMP'),
            ('RGBA', (255, 0, 0, 10), 'PNG'),
            ('CMYK', (0, 255, 255, 0), 'JPEG'),
        ],
    )
    def test_colour_becomes_bgr(self, tmp_path, backend, mode, colour, file_format):
        path = tmp_path / 'image'
        path.write_bytes(encode(Image.new(mode, (3, 5), colour), file_format))
        results = LoadReIDImage(backend)(dict(img_path=str(path)))
        img = results['img']
        assert (img.shape, img.dtype) == ((5, 3, 3), np.uint8)
        assert np.abs(img.astype(int) - RED_BGR).max() <= 3
        assert results['img_shape'] == results['ori_shape'] == (5, 3)
        assert img.flags.c_contiguous

    def test_palette(self):
        data = encode(Image.new('RGB', (3, 5), (255, 0, 0)).convert('P'), 'PNG')
        img = LoadReIDImage()(dict(img_bytes=data))['img']
        assert np.abs(img.astype(int) - RED_BGR).max() <= 3

    @pytest.mark.parametrize('backend', ['pillow', 'cv2'])
    @pytest.mark.parametrize(('dtype', 'scale'), [(np.uint8, 1), (np.uint16, 257)])
    def test_grey_of_8_and_16_bits(self, backend, dtype, scale):
        grey = np.arange(0, 256, 5, dtype=dtype).reshape(4, 13)
        data = encode(Image.fromarray(grey * dtype(scale)), 'PNG')
        img = LoadReIDImage(backend)(dict(img_bytes=data))['img']
        np.testing.assert_array_equal(img, np.repeat(grey[..., None], 3, axis=2))

    @pytest.mark.parametrize('backend', ['pillow', 'cv2'])
    def test_exif_orientation(self, backend):
        img = Image.new('RGB', (30, 10))
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encode(img, 'JPEG', exif=exif)
        assert LoadReIDImage(backend)(dict(img_bytes=data))['img'].shape == (30, 10, 3)

    @pytest.mark.parametrize(
        ('shape', 'dtype'),
        [((4, 2), np.uint8), ((4, 2, 1), np.uint8), ((4, 2, 3), np.uint16), ((4, 2, 4), np.uint8)],
    )
    def test_arrays(self, shape, dtype):
        img = LoadReIDImage()(dict(img=np.zeros(shape, dtype)))['img']
        assert (img.shape, img.dtype) == ((4, 2, 3), np.uint8)

    @pytest.mark.parametrize(('shape', 'dtype'), [((4, 2), np.float32), ((4, 2, 5), np.uint8)])
    def test_bad_arrays(self, shape, dtype):
        with pytest.raises(ValueError, match='readable name'):
            LoadReIDImage()(dict(img=np.zeros(shape, dtype), img_path='readable name'))

    def test_missing_file(self, tmp_path):
        with pytest.raises(
            CorruptImageError, match=r"No such image file: .*x\.jpg.*corrupt='skip'"
        ):
            LoadReIDImage()(dict(img_path=str(tmp_path / 'x.jpg')))

    def test_folder_instead_of_file(self, tmp_path):
        with pytest.raises(CorruptImageError, match='Cannot read'):
            LoadReIDImage()(dict(img_path=str(tmp_path)))

    @pytest.mark.parametrize('backend', ['pillow', 'cv2'])
    @pytest.mark.parametrize('data', [b'', b'not an image'])
    def test_no_image(self, tmp_path, data, backend):
        path = tmp_path / 'x.jpg'
        path.write_bytes(data)
        with pytest.raises(CorruptImageError, match=r'x\.jpg.*(0 bytes|not an image)'):
            LoadReIDImage(backend)(dict(img_path=str(path)))

    @pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
    def test_truncated(self, file_format):
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        data = encode(Image.fromarray(noise), file_format)
        for length in (10, len(data) // 2, len(data) - 30):
            with pytest.raises(CorruptImageError, match=r'a\.jpg.*truncated'):
                LoadReIDImage()(dict(img_bytes=data[:length], img_path='a.jpg'))

    def test_float_pixels(self):
        data = encode(Image.new('F', (2, 2)), 'TIFF')
        with pytest.raises(CorruptImageError, match='floating-point'):
            LoadReIDImage()(dict(img_bytes=data, img_path='a.tif'))

    def test_unknown_backend(self):
        with pytest.raises(ValueError, match="got 'turbo'"):
            LoadReIDImage('turbo')


class TestErasing:
    def test_noise_is_standard_normal_after_normalisation(self):
        mean, std = (100.0, 120.0, 140.0), (50.0, 60.0, 70.0)
        erase = PixelRandomErasing(1.0, area_range=(0.3, 0.33), mean=mean, std=std)
        noise = []
        for _ in range(20):
            img = np.full((64, 32, 3), 1, np.uint8)
            erased = erase(dict(img=img))['img']
            assert erased.dtype == np.float32
            assert (img == 1).all(), 'the input is left alone'
            noise.append((erased[(erased != 1).all(axis=2)] - mean) / std)
        noise = np.concatenate(noise)
        assert noise.shape[0] > 10_000
        np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.05)
        np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.05)
        assert abs(noise).max() > 3, 'not clipped to 0..255'
        np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(3), atol=0.05)

    def test_boxes(self):
        erase = PixelRandomErasing(1.0)
        boxes = np.array([erase.random_patch(256, 128) for _ in range(4000)])
        top, left, h, w = boxes.T
        area, aspect = h * w / (256 * 128), h / w
        assert area.min() > 0.019
        assert area.max() < 0.34
        assert aspect.min() > 0.29
        assert aspect.max() < 3.45
        assert (top + h).max() == 256, 'the last row can be reached'
        assert (left + w).max() == 128
        assert top.min() == left.min() == 0

    def test_aspect_is_log_uniform(self):
        # In a small share of a square image any aspect fits.
        erase = PixelRandomErasing(1.0, area_range=(0.02, 0.05))
        boxes = np.array([erase.random_patch(500, 500) for _ in range(4000)])
        position = np.log(boxes[:, 2] / boxes[:, 3]) / np.log(1 / 0.3)
        quartiles = np.quantile(position, [0.25, 0.5, 0.75])
        np.testing.assert_allclose(quartiles, [-0.5, 0, 0.5], atol=0.06)

    def test_probability(self):
        erase = PixelRandomErasing(0.8)
        images = [erase(dict(img=np.zeros((32, 16, 3), np.uint8)))['img'] for _ in range(1000)]
        assert np.mean([img.any() for img in images]) == pytest.approx(0.8, abs=0.05)
        assert {img.dtype for img in images} == {np.dtype('float32')}, 'batches can be stacked'

    def test_box_that_never_fits(self):
        erase = PixelRandomErasing(1.0, area_range=(0.9, 1.0), aspect_range=(3.0, 3.3))
        results = erase(dict(img=np.zeros((16, 16, 3), np.uint8)))
        assert not results['img'].any()

    def test_max_tries(self):
        with pytest.raises(ValueError, match='max_tries'):
            PixelRandomErasing(max_tries=0)


class TestPadAndCrop:
    """mmpretrain's transform does exactly what the recipe asks for."""

    def test_pads_zeros_and_reaches_all_offsets(self):
        crop = RandomCrop(crop_size=(8, 6), padding=2)
        img = 1 + np.arange(48, dtype=np.uint8).reshape(8, 6, 1) * np.ones(3, np.uint8)
        padded = np.pad(img, [(2, 2), (2, 2), (0, 0)])
        windows = {
            padded[y : y + 8, x : x + 6].tobytes(): (y, x) for y in range(5) for x in range(5)
        }
        found = {windows[crop(dict(img=img))['img'].tobytes()] for _ in range(400)}
        assert found == {(y, x) for y in range(5) for x in range(5)}


class TestLetterbox:
    @pytest.mark.parametrize('backend', ['pillow', 'cv2'])
    @pytest.mark.parametrize(
        ('shape', 'content'),
        [((10, 40), (32, 8)), ((40, 10), (32, 64)), ((20, 10), (32, 64)), ((1000, 1), (1, 64))],
    )
    def test_keeps_aspect_and_centres(self, backend, shape, content):
        img = np.full((*shape, 3), 200, np.uint8)
        results = Letterbox((64, 32), pad_val=7, backend=backend)(dict(img=img))
        width = min(32, max(1, round(shape[1] * min(64 / shape[0], 32 / shape[1]))))
        height = min(64, max(1, round(shape[0] * min(64 / shape[0], 32 / shape[1]))))
        assert content[1] == height
        assert results['img'].shape == (64, 32, 3)
        assert results['img_shape'] == (64, 32)
        inside = (results['img'] == 200).all(axis=2)
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert (len(rows), len(columns)) == (height, width)
        assert rows[0] == (64 - height) // 2
        assert columns[0] == (32 - width) // 2
        assert (results['img'][~inside] == 7).all()

    def test_errors(self):
        with pytest.raises(ValueError, match='height, width'):
            Letterbox((0, 3))


def test_packing():
    sample = dict(
        img=np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
        img_path='a.jpg',
        gt_label=3,
        identity=17,
        camera_id=-1,
        view_id=2,
        subset='train',
    )
    packed = PackReIDInputs()(sample)
    assert packed['inputs'].dtype == torch.uint8
    np.testing.assert_array_equal(packed['inputs'], sample['img'].transpose(2, 0, 1))
    data_sample = packed['data_samples']
    assert data_sample.gt_label.tolist() == [3]
    for key in ('img_path', 'identity', 'camera_id', 'view_id', 'subset'):
        assert data_sample.metainfo[key] == sample[key]
    del sample['gt_label']
    sample['img'] = sample['img'].astype(np.float32)
    packed = PackReIDInputs()(sample)
    assert packed['inputs'].dtype == torch.float32
    assert 'gt_label' not in packed['data_samples']


@pytest.fixture
def scope():
    before = DefaultScope.get_current_instance()
    init_default_scope('vitdown')
    yield
    if before is not None:
        init_default_scope(before.scope_name)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_data_loader(market, scope, num_workers):
    size = (32, 16)
    pipeline = [
        dict(type='LoadReIDImage'),
        dict(type='Resize', scale=size[::-1], interpolation='bicubic', backend='pillow'),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='mmpretrain.RandomCrop', crop_size=size, padding=2),
        dict(type='PixelRandomErasing', erase_prob=0.5),
        dict(type='PackReIDInputs'),
    ]
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=num_workers,
            sampler=dict(type='IdentitySampler', num_identities=2, num_instances=2),
            dataset=dict(
                type='Market1501', data_root=str(market), subset='train', pipeline=pipeline
            ),
        ),
        seed=0,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 1
    preprocessor = ClsDataPreprocessor(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
    batch = preprocessor(batches[0], training=True)
    assert batch['inputs'].shape == (4, 3, *size)
    assert batch['inputs'].dtype == torch.float32
    labels = [sample.gt_label.item() for sample in batch['data_samples']]
    assert labels[0] == labels[1] != labels[2] == labels[3]


def test_resizing_of_the_recipe_is_pillows():
    """mmcv resizes as torchvision does with PIL images, so no own transform is needed."""
    img = np.random.default_rng(0).integers(0, 256, (50, 30, 3), dtype=np.uint8)
    for name, code in (('bicubic', Image.BICUBIC), ('bilinear', Image.BILINEAR)):
        expected = Image.fromarray(img).resize((16, 32), code)
        found = mmcv.imresize(img, (16, 32), interpolation=name, backend='pillow')
        np.testing.assert_array_equal(found, expected)
