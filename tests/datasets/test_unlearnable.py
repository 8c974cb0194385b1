"""Class-wise keyed filters: the numbers, the images and the key."""

import hashlib
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d

from vitdown.datasets.unlearnable import (
    Key,
    KeyUnavailableError,
    class_filters,
    convolve_batch,
    convolve_image,
    correlate,
    poison_draws,
    poison_mask,
    read_key,
)

SECRET = 'a long secret of many words'


def definition(image, filt, grayscale=False):
    """The method's definition in float64, before truncation; (H, W, C)."""
    filtered = np.stack([correlate2d(c, filt, mode='same') for c in image.transpose(2, 0, 1)], -1)
    if grayscale:
        filtered = np.repeat(filtered.mean(2, keepdims=True), image.shape[2], 2)
    return filtered / filtered.max() * 255


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_filters_of_more_classes_start_with_those_of_fewer():
    assert np.array_equal(class_filters(3, 12)[:5], class_filters(3, 5))


def test_blur_scales_all_cells_but_one():
    weak, strong = class_filters(0, 20, 5, 0.1), class_filters(0, 20, 5, 0.4)
    ones = weak == 1
    assert np.array_equal(ones, strong == 1)
    assert (ones.sum(axis=(1, 2)) == 1).all()
    np.testing.assert_allclose(strong[~ones], 4 * weak[~ones], rtol=1e-14)
    assert len({tuple(cell) for cell in np.argwhere(ones)[:, 1:]}) > 5


def test_filters_without_a_center_and_with_any_blur():
    filters = class_filters(0, 50, 3, None, center=None)
    assert 0.9 < filters.max() < 1
    assert np.array_equal(filters[0], class_filters(0, 1, 3, 1.0, center=None)[0])


def test_one_filter_for_all_classes():
    filters = class_filters(7, 4, same_filter=True)
    assert np.array_equal(filters, np.repeat(class_filters(7, 1), 4, axis=0))


def test_global_generators_are_left_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(0)
    torch.manual_seed(0)
    class_filters(1, 10)
    poison_mask(1, 10, 3, 5, 0.5)
    assert (np.random.rand(), torch.rand(1)) == expected


def test_mask_does_not_depend_on_the_number_of_images():
    draws = poison_draws(5, 10, 3, 1000)
    assert np.array_equal(poison_draws(5, 10, 3, 100), draws[:100])
    mask = poison_mask(5, 10, 3, 1000, 0.3)
    assert 250 < mask.sum() < 350
    assert poison_mask(5, 10, 3, 50, 1.0).all()
    assert not poison_mask(5, 10, 3, 50, 0.0).any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_classes=0), 'num_classes must be an integer of at least 1, got 0'),
        (dict(num_classes=2, kernel_size=4), 'kernel_size must be odd and positive, got 4'),
        (dict(num_classes=1.5), 'num_classes must be an integer of at least 1, got 1.5'),
        (dict(num_classes=2, kernel_size=3.0), r'kernel_size must be odd and positive, got 3\.0'),
        *(
            (
                dict(num_classes=2, blur_parameter=blur),
                f'finite in float32 and not negative, got {blur!r}',
            )
            for blur in (-1, math.nan, math.inf, '0.3', True)
        ),
        *(
            (dict(num_classes=2, center=center), f'positive, or None, got {center!r}')
            for center in (0, -1, math.nan, math.inf, '1')
        ),
        (dict(num_classes=2, blur_parameter=1e39), r'finite in float32 .* got 1e\+39'),
        (dict(num_classes=2, kernel_size=True), 'must be odd and positive, got True'),
        (dict(num_classes=2, blur_parameter=0, center=None), 'all cells would be 0'),
    ],
)
def test_wrong_settings_of_filters(arguments, message):
    with pytest.raises(ValueError, match=message):
        class_filters(0, **arguments)


def test_wrong_fraction():
    for fraction in (1.5, '0.5'):
        with pytest.raises(ValueError, match=f'must be 0 to 1, got {fraction!r}'):
            poison_mask(0, 2, 3, 4, fraction)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 4),
    kernel_size=st.sampled_from([1, 3, 5, 9]),
    grayscale=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_and_kernel_follow_the_definition(
    height, width, channels, kernel_size, grayscale, seed
):
    image = noise(height, width, channels, seed=seed)
    image[0, 0] = 200
    (filt,) = class_filters(seed, 1, kernel_size, 0.3)
    expected = definition(image, filt, grayscale)
    exact = convolve_image(image, filt, grayscale)
    assert exact.shape == image.shape
    assert exact.max() == 255
    # Floor of the definition, up to the rounding of the filter
    assert ((exact <= expected + 1e-4) & (exact > expected - 1 - 1e-4)).all()
    batch = convolve_batch(
        torch.from_numpy(image).permute(2, 0, 1)[None],
        torch.from_numpy(filt)[None],
        torch.tensor([0]),
        grayscale,
    )[0]
    assert np.abs(batch.permute(1, 2, 0).numpy().astype(int) - exact).max() <= 1


def test_result_does_not_depend_on_the_order_of_summation():
    """Sums are exact, so a flipped image gives the flipped result, bit by bit."""
    image, (filt,) = noise(40, 50, 3), class_filters(2, 1, 9, 0.06)
    turned = correlate(image[::-1, ::-1].copy(), filt[::-1, ::-1].copy())
    assert np.array_equal(turned[::-1, ::-1], correlate(image, filt))


@pytest.mark.parametrize('grayscale', [False, True])
def test_powers_of_two_change_nothing(grayscale):
    """Images are rescaled, so filters may have cells of any size."""
    images, labels, filters = noise(3, 3, 12, 9), np.arange(3), class_filters(1, 3, 9, 1.0)
    for factor in (2.0**-80, 2.0**12, 2.0**120):
        assert np.array_equal(
            convolve_batch(images, factor * filters, labels, grayscale),
            convolve_batch(images, filters, labels, grayscale),
        )
    # From here on, the cells are rounded to multiples of more than 2**-26.
    large = filters * 2.0**20
    for image, filt in zip(images.transpose(0, 2, 3, 1), large):
        result = convolve_image(image, filt, grayscale)
        assert result.max() == 255
        assert np.array_equal(convolve_image(image, 2.0**90 * filt, grayscale), result)
        expected = definition(image, filt, grayscale)
        assert ((result <= expected + 1e-4) & (result > expected - 1 - 1e-4)).all()
        turned = correlate(image[::-1, ::-1].copy(), filt[::-1, ::-1].copy())
        assert np.array_equal(turned[::-1, ::-1], correlate(image, filt))


@pytest.mark.parametrize('factor', [1e-6, 1e-9, 1e-30])
def test_small_cells(factor):
    image, filt = noise(12, 9, 3), factor * class_filters(1, 1, 3, 1.0, center=None)[0]
    result, expected = convolve_image(image, filt), definition(image, filt)
    assert ((result <= expected + 1e-4) & (result > expected - 1 - 1e-4)).all()
    turned = correlate(image[::-1, ::-1].copy(), filt[::-1, ::-1].copy())
    assert np.array_equal(turned[::-1, ::-1], correlate(image, filt))


def test_sums_below_zero_are_black():
    edges = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0.0]])
    image = noise(12, 9, 3)
    sums = correlate(image, edges)
    assert sums.min() < 0 < sums.max()
    assert np.array_equal(convolve_image(image, edges) == 0, sums * 255 / sums.max() < 1)


def test_large_kernels():
    image, (filt,) = noise(20, 30, 1), class_filters(3, 1, 65, 1.0)
    assert filt.sum() > 2000
    result, expected = convolve_image(image, filt), definition(image, filt)
    assert ((result <= expected + 1e-4) & (result > expected - 1 - 1e-4)).all()


def test_cells_are_rounded_to_float32():
    """As in the paper's code, and in batches."""
    cell = float(np.float32(100.1))
    assert cell != 100.1
    assert correlate(np.ones((1, 1), np.uint8), np.array([[100.1]])) == cell


def test_delta_filter_stretches_the_image():
    image = noise(16, 16, 3) // 2
    delta = np.zeros((3, 3))
    delta[1, 1] = 1
    assert np.array_equal(convolve_image(image, delta), image.astype(int) * 255 // image.max())
    assert np.array_equal(convolve_image(image[..., 0], delta)[..., None],
                          convolve_image(image[..., :1], delta))  # fmt: skip


def test_black_images_stay_black():
    black = np.zeros((4, 5, 3), np.uint8)
    filters = class_filters(0, 1)
    assert not convolve_image(black, filters[0]).any()
    batch = torch.stack([torch.zeros(3, 4, 5), torch.ones(3, 4, 5)])
    out = convolve_batch(batch, torch.from_numpy(filters), torch.tensor([0, 0]))
    assert not out[0].any()
    assert out[1].max() == 1


def test_what_a_filter_leaves_nothing_of_comes_back():
    """A filter that moves all by one pixel, on an image with one pixel at the border."""
    image, shift = np.zeros((5, 4, 3), np.uint8), np.zeros((3, 3))
    image[0, 0], shift[1, 2] = 100, 1
    assert np.array_equal(convolve_image(image, shift), image)
    both = np.stack([image, image[:, ::-1]]).transpose(0, 3, 1, 2)
    for top in (1, 255):
        batch = both if top == 255 else both / np.float32(255)
        out = convolve_batch(batch, shift[None], np.array([0, 0]))
        assert out.dtype == batch.dtype
        assert np.array_equal(out[0], batch[0])
        assert np.array_equal(np.argwhere(out[1, 0]), [[0, 2]])
        assert out.max() == top


def test_arrays_with_negative_strides():
    images, labels, filters = noise(4, 3, 6, 5), np.array([0, 1, 1, 2]), class_filters(1, 3)
    turned = convolve_batch(images[::-1, ::-1], filters[::-1], 2 - labels[::-1])
    assert np.array_equal(turned[::-1, ::-1], convolve_batch(images, filters, labels))


def test_batches_larger_than_a_chunk():
    images = torch.from_numpy(noise(40, 3, 96, 96))
    labels = torch.arange(40) % 4
    filters = torch.from_numpy(class_filters(1, 4, 5, 0.2))
    whole = convolve_batch(images, filters, labels)
    for index in (0, 17, 39):
        part = slice(index, index + 1)
        assert torch.equal(whole[part], convolve_batch(images[part], filters, labels[part]))
    assert convolve_batch(images[:0], filters, labels[:0]).shape == (0, 3, 96, 96)
    ours = convolve_batch(images.float() / 255, filters, labels)
    assert torch.allclose(ours * 255, whole + 0.5, atol=0.51)


def test_arrays_gradients_mixed_precision_and_no_pixels():
    images, labels, filters = noise(4, 3, 16, 16), np.array([0, 1, 1, 2]), class_filters(1, 3)
    expected = convolve_batch(images, filters, labels)
    assert isinstance(expected, np.ndarray)
    tensors = [torch.from_numpy(array) for array in (images, filters, labels.astype(np.uint8))]
    with torch.autocast('cpu', torch.bfloat16):
        assert np.array_equal(convolve_batch(*tensors), expected)
    floats = (tensors[0] / 255).requires_grad_()
    ours = convolve_batch(floats, *tensors[1:])
    assert not ours.requires_grad
    assert torch.allclose(ours * 255, torch.from_numpy(expected) + 0.5, atol=0.51)
    assert convolve_batch(images[:, :, :0], filters, labels).shape == (4, 3, 0, 16)


def test_wrong_batches():
    images, filters = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(4, 3, 3)
    labels = torch.tensor([0, 4])
    with pytest.raises(ValueError, match='labels must be 0 to 3, one for each filter, got 0 to 4'):
        convolve_batch(images, filters, labels)
    with pytest.raises(ValueError, match='2 images need as many labels'):
        convolve_batch(images, filters, labels[:1])
    with pytest.raises(ValueError, match=r'filters must be \(K, k, k\) with odd k'):
        convolve_batch(images, torch.ones(4, 2, 2), labels)
    with pytest.raises(ValueError, match='labels must be integers, got torch.float32'):
        convolve_batch(images, filters, labels.float())
    with pytest.raises(ValueError, match='labels must be integers, got torch.bool'):
        convolve_batch(images, filters, labels.bool())
    for pixel, found in ((255.0, '0 to 255'), (-0.5, '-0.5 to 0'), (float('nan'), 'nan to nan')):
        wrong = torch.zeros(2, 3, 8, 8)
        wrong[1, 0, 0, 0] = pixel
        with pytest.raises(ValueError, match=f'must be 0..1, got {found}; divide'):
            convolve_batch(wrong, filters, labels // 2)
    with pytest.raises(ValueError, match=r'images must be \(N, C, H, W\), uint8'):
        convolve_batch(images.int(), filters, labels)
    with pytest.raises(ValueError, match='uint8, got float32'):
        convolve_image(np.zeros((4, 4, 3), np.float32), np.ones((3, 3)))
    with pytest.raises(ValueError, match='odd k'):
        convolve_image(np.zeros((4, 4, 3), np.uint8), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r'shape \(0, 4, 3\) has no pixels'):
        convolve_image(np.zeros((0, 4, 3), np.uint8), np.ones((3, 3)))
    for cell in (math.nan, math.inf):
        with pytest.raises(ValueError, match='cells of filters must be finite in float32'):
            convolve_batch(images, filters * cell, labels // 2)
    for cell in (math.nan, math.inf, 1e300):
        with pytest.raises(ValueError, match='cells of a filter must be finite in float32'):
            convolve_image(np.ones((4, 4, 3), np.uint8), np.full((3, 3), cell))


def test_key_is_a_seed_or_a_hashed_secret():
    assert Key('seed:42\n').seed == 42
    assert Key('seed:42').is_guessable
    secret = Key(f' {SECRET}\n')
    assert not secret.is_guessable
    # The words of the SHA-256 that sha256sum prints
    assert hashlib.sha256(SECRET.encode()).hexdigest() == ''.join(f'{w:08x}' for w in secret.seed)
    assert secret.seed == Key(SECRET).seed != Key(SECRET + '!').seed
    assert class_filters(secret.seed, 2).shape == (2, 3, 3)


def test_key_does_not_show_itself():
    key = Key(SECRET)
    for text in (repr(key), str(key), f'{key}', f'{[key]}'):
        assert SECRET not in text
        assert str(key.seed[0]) not in text
    assert key.fingerprint(b'1') == Key(SECRET).fingerprint(b'1') != key.fingerprint(b'2')
    # Slow on purpose: another cost would give another digest.
    assert key.fingerprint(b'salt') == '9117d2a02430d70294f7a3bdaaa4def7'
    assert pickle.loads(pickle.dumps(key)).seed == key.seed


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'too short: 0 characters'),
        ('hunter2', 'too short: 7 characters, 7 different ones, at least 16 and 8'),
        ('0' * 16, 'too short: 0 characters, 1 different'),
        ('0000000000000042', 'too short: 2 characters'),
        ('abcabcabcabcabcabc', '3 different ones'),
        ('seed:', "after 'seed:' there must be an integer"),
        ('seed:4294967296', 'an integer from 0 to'),
        ('seed:-1 and some more text', 'an integer from 0 to'),
    ],
)
def test_unusable_keys(text, message):
    with pytest.raises(KeyUnavailableError, match=message) as error:
        Key(text)
    assert text in ('', 'seed:') or text not in str(error.value)


def test_reading_keys(tmp_path, monkeypatch):
    monkeypatch.delenv('VITDOWN_UNLEARNABLE_KEY', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(KeyUnavailableError, match='VITDOWN_UNLEARNABLE_KEY is not set'):
        read_key()
    with pytest.raises(KeyUnavailableError, match='that was named is not set') as error:
        read_key(key_variable='OTHER')
    assert 'OTHER' not in str(error.value)
    with pytest.raises(
        KeyUnavailableError, match='Cannot read the key file.*No such file'
    ) as error:
        read_key(tmp_path / 'nowhere')
    assert 'nowhere' not in str(error.value)
    (tmp_path / 'binary').write_bytes(b'\xff' * 20)
    with pytest.raises(KeyUnavailableError, match='no text file'):
        read_key(tmp_path / 'binary')
    with pytest.raises(KeyUnavailableError, match='not both'):
        read_key(tmp_path / 'nowhere', 'OTHER')
    for wrong in (dict(key_file=7261), dict(key_variable=7261), dict(key_file=[7261])):
        with pytest.raises(KeyUnavailableError, match='named by text, and what was giv') as error:
            read_key(**wrong)
        assert '7261' not in str(error.value)
    (tmp_path / 'key').write_text(SECRET + '\n')
    monkeypatch.setenv('VITDOWN_UNLEARNABLE_KEY', SECRET)
    monkeypatch.setenv('OTHER', 'seed:1')
    assert read_key().seed == read_key(tmp_path / 'key').seed == Key(SECRET).seed
    assert read_key(key_variable='OTHER').seed == 1
    with pytest.raises(KeyUnavailableError, match='that was named is not set'):
        read_key(key_variable='')
    assert read_key('~/key').seed == Key(SECRET).seed
    # As some editors begin UTF-8 files
    (tmp_path / 'marked').write_bytes(b'\xef\xbb\xbf' + SECRET.encode())
    assert read_key(tmp_path / 'marked').seed == Key(SECRET).seed
