"""Class-wise filters and random blur in pipelines."""

import io

import numpy as np
import pytest
from mmengine.registry import DefaultScope, init_default_scope
from PIL import Image
from torch.utils.data import DataLoader

from vitdown.datasets import Omniglot, PackedCIFAR
from vitdown.datasets.transforms import ConvUnlearnable, RandomConvBlur
from vitdown.datasets.unlearnable import class_filters, convolve_image, poison_mask
from vitdown.registry import TRANSFORMS

FILTERS = class_filters(5, 3)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv('VITDOWN_UNLEARNABLE_KEY', 'seed:5')
    before = DefaultScope.get_current_instance()
    init_default_scope('vitdown')
    yield
    if before is not None:
        init_default_scope(before.scope_name)


@pytest.fixture
def cifar_file(tmp_path):
    """A tiny pack: 1 picture of 2 x 3 training images, another of 1 x 2 test images."""
    rng = np.random.default_rng(0)
    arrays = {'class_names': np.array(['cat', 'dog', 'emu'])}
    for split, rows, columns in (('train', 2, 3), ('test', 1, 2)):
        picture = rng.integers(0, 256, (32 * rows, 32 * columns, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, 'WEBP', lossless=True)
        arrays[f'{split}_images_00'] = np.frombuffer(buffer.getvalue(), np.uint8)
        arrays[f'{split}_labels'] = np.arange(rows * columns, dtype=np.uint8) % 3
        arrays[f'{split}_picture'] = picture
    path = tmp_path / 'cifar10_tiny.npz'
    np.savez(path, **arrays)
    return path


def sample(label=1, index=0, **changes):
    img = np.random.default_rng(index).integers(0, 256, (10, 8, 3), dtype=np.uint8)
    return dict(img=img, gt_label=label, sample_idx=index, img_path='a.png') | changes


@pytest.mark.parametrize('label', [0, 1, 2, np.int64(2)])
def test_image_is_filtered_by_class(label):
    transform = TRANSFORMS.build(dict(type='ConvUnlearnable', num_classes=3))
    results = transform(sample(label))
    assert np.array_equal(results['img'], convolve_image(sample()['img'], FILTERS[label]))
    assert results['gt_label'] == label


def test_fraction_follows_the_index_alone():
    transform = ConvUnlearnable(num_classes=3, poison_fraction=0.5)
    mask = poison_mask(5, 3, 3, 200, 0.5)
    for index in (*range(150), 3, 199, 0):
        changed = not np.array_equal(transform(sample(0, index))['img'], sample(0, index)['img'])
        assert changed == mask[index]


@pytest.mark.parametrize(('kernel_size', 'center'), [(5, 1.0), (3, None), (3, 0.5)])
def test_filters_and_mask_follow_all_options(kernel_size, center):
    transform = ConvUnlearnable(3, kernel_size, 0.2, center, poison_fraction=0.5)
    filters = class_filters(5, 3, kernel_size, 0.2, center)
    mask = poison_mask(5, 3, kernel_size, 60, 0.5, center)
    for index in range(60):
        expected = sample(index=index)['img']
        if mask[index]:
            expected = convolve_image(expected, filters[1])
        assert np.array_equal(transform(sample(index=index))['img'], expected)


def test_same_images_in_all_workers_and_epochs(cifar_file):
    pipeline = [
        dict(type='ConvUnlearnable', num_classes=3, poison_fraction=0.5),
        dict(type='mmpretrain.PackInputs'),
    ]
    dataset = PackedCIFAR(str(cifar_file), pipeline=pipeline)
    runs = [
        np.stack([item['inputs'].numpy() for item in DataLoader(dataset, None, num_workers=n)])
        for n in (0, 0, 2)
    ]
    assert np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], runs[2])


def test_options():
    grey = ConvUnlearnable(num_classes=3, grayscale=True)(sample())['img']
    assert (grey == grey[..., :1]).all()
    same = ConvUnlearnable(num_classes=3, same_filter=True)(sample(2))['img']
    assert np.array_equal(same, convolve_image(sample()['img'], FILTERS[0]))
    for label in range(3):
        shifted = ConvUnlearnable(num_classes=3, class_shift=1)(sample(label))['img']
        assert np.array_equal(shifted, convolve_image(sample()['img'], FILTERS[(label + 1) % 3]))


def test_wrong_options():
    with pytest.raises(ValueError, match=r'class_shift must be an integer, got 1\.5'):
        ConvUnlearnable(num_classes=3, class_shift=1.5)
    with pytest.raises(ValueError, match='center must be finite in float32 and positive, or None'):
        ConvUnlearnable(num_classes=3, center=float('nan'))
    for option in ('grayscale', 'same_filter'):
        with pytest.raises(ValueError, match=f"{option} must be True or False, got 'no'"):
            ConvUnlearnable(num_classes=3, **{option: 'no'})
    with pytest.raises(ValueError, match="must be 0 to 1, got '0.5'"):
        ConvUnlearnable(num_classes=3, poison_fraction='0.5')
    with pytest.raises(ValueError, match='kernel_size 1 protects nothing'):
        ConvUnlearnable(num_classes=3, kernel_size=1)


def test_reid_identities_are_classes(omniglot_file):
    pipeline = [
        dict(type='LoadReIDImage'),
        dict(type='ConvUnlearnable', num_classes=2),
        dict(type='PackReIDInputs'),
    ]
    clean = Omniglot(str(omniglot_file), 'train', pipeline=[dict(type='LoadReIDImage')])
    protected = Omniglot(str(omniglot_file), 'train', pipeline=pipeline)
    for index in range(len(clean)):
        expected = convolve_image(clean[index]['img'], FILTERS[clean[index]['gt_label']])
        found = protected[index]['inputs'].numpy().transpose(1, 2, 0)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(gt_label=3), r'a\.png: gt_label must be one class of 0\.\.2, got 3\. Set num_cla'),
        (dict(gt_label=-1), r'0\.\.2, got -1'),
        (dict(gt_label=[0, 1]), r'one class of 0\.\.2, got \[0, 1\]'),
        (dict(gt_label='a'), r"a\.png: gt_label must be one class of 0\.\.2, got 'a'. Set"),
        (dict(gt_label=None), r'0\.\.2, got None'),
        (dict(gt_label=1.5), r'0\.\.2, got 1\.5'),
        (dict(gt_bboxes=[]), "a.png has 'gt_bboxes': .*detection and segmentation"),
        (dict(img=None), 'ConvUnlearnable: a.png has no array img; put it behind'),
        (
            dict(img=np.zeros((4, 4, 3), np.float32)),
            r'a.png: pixels are float32 of shape \(4, 4, 3\), expected uint8',
        ),
    ],
)
def test_unfit_samples(changes, message):
    with pytest.raises(ValueError, match=message):
        ConvUnlearnable(num_classes=3)(sample(**changes))


def test_missing_label_and_index():
    test_sample = sample()
    del test_sample['gt_label']
    with pytest.raises(ValueError, match="a.png has no 'gt_label'.*test pipelines"):
        ConvUnlearnable(num_classes=3)(test_sample)
    unnumbered = sample()
    del unnumbered['sample_idx']
    some = ConvUnlearnable(num_classes=3, poison_fraction=0.5)
    with pytest.raises(ValueError, match='a.png has no sample_idx .*but None'):
        some(unnumbered)
    with pytest.raises(ValueError, match='a.png has no sample_idx of 0 or more.*but -1'):
        some(sample() | dict(sample_idx=-1))
    # Wrong pixels are found whether or not this image is the one to be filtered.
    with pytest.raises(ValueError, match='a.png: pixels are float32'):
        ConvUnlearnable(num_classes=3, poison_fraction=0.0)(sample(img=np.zeros((4, 4), 'f')))
    with pytest.raises(ValueError, match='RandomConvBlur: a.png: pixels are float32'):
        RandomConvBlur()(sample(img=np.zeros((4, 4), 'f')))


def test_key_comes_from_outside(tmp_path, monkeypatch):
    (tmp_path / 'key').write_text('seed:6')
    other = ConvUnlearnable(num_classes=3, key_file=str(tmp_path / 'key'))
    assert np.array_equal(
        other(sample())['img'], convolve_image(sample()['img'], class_filters(6, 3)[1])
    )
    with pytest.raises(TypeError, match='seed'):
        TRANSFORMS.build(dict(type='ConvUnlearnable', num_classes=3, seed=0))
    monkeypatch.setenv('VITDOWN_UNLEARNABLE_KEY', 'some very long secret')
    assert 'secret' not in repr(ConvUnlearnable(num_classes=3))
    monkeypatch.delenv('VITDOWN_UNLEARNABLE_KEY')
    with pytest.raises(ValueError, match='VITDOWN_UNLEARNABLE_KEY is not set'):
        ConvUnlearnable(num_classes=3)


def test_random_blur_draws_a_filter_for_each_image():
    blur = TRANSFORMS.build(dict(type='RandomConvBlur', blur_parameter=0.3))
    np.random.seed(0)
    first, second = (blur(sample())['img'] for _ in range(2))
    assert not np.array_equal(first, second)
    assert all((blur.random_filter() == 1).sum() == 1 for _ in range(5))
    np.random.seed(0)
    assert np.array_equal(blur(sample())['img'], first)
    assert np.array_equal(RandomConvBlur(prob=0.0)(sample())['img'], sample()['img'])
    with pytest.raises(ValueError, match='kernel_size must be odd'):
        RandomConvBlur(kernel_size=2)
    with pytest.raises(ValueError, match='blur_parameter must be finite in float32 and not'):
        RandomConvBlur(blur_parameter=float('inf'))
    with pytest.raises(ValueError, match='prob must be 0 to 1, got 2'):
        RandomConvBlur(prob=2)


def test_packed_cifar(cifar_file):
    dataset = PackedCIFAR(str(cifar_file.parent))
    picture = np.load(cifar_file)['train_picture']
    assert len(dataset) == 6
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'emu')
    assert dataset.get_gt_labels().tolist() == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(dataset[4]['img'], picture[32:, 32:64, ::-1])
    assert len(PackedCIFAR(str(cifar_file), 'test')) == 2
    assert len(PackedCIFAR(str(cifar_file), indices=4)) == 4


def test_packed_cifar_errors(cifar_file, tmp_path):
    with pytest.raises(ValueError, match="must be 'train' or 'test', got 'val'"):
        PackedCIFAR(str(cifar_file), 'val')
    with pytest.raises(FileNotFoundError, match='VITDOWN_DATA'):
        PackedCIFAR(str(tmp_path / 'nowhere'))
    np.savez(tmp_path / 'other.npz', x=np.zeros(3))
    with pytest.raises(ValueError, match='lacks train_images_00.*it has x'):
        PackedCIFAR(str(tmp_path / 'other.npz'))
    arrays = dict(np.load(cifar_file))
    arrays['train_labels'] = arrays['train_labels'][:5]
    np.savez(tmp_path / 'short.npz', **arrays)
    with pytest.raises(ValueError, match='6 images, 5 labels'):
        PackedCIFAR(str(tmp_path / 'short.npz'))
