import io

import numpy as np
import pytest
from PIL import Image

from vitdown.apis import list_images
from vitdown.apis.search_page.images import decode_upload
from vitdown.datasets.transforms.decoding import CorruptImageError, decode_image


@pytest.fixture
def photos(tmp_path):
    (tmp_path / 'deep').mkdir()
    for name in ('b.png', 'a.JPG', 'deep/c.jpg'):
        Image.new('RGB', (4, 6)).save(tmp_path / name, format='PNG')
    (tmp_path / 'notes.txt').write_text('no image')
    return tmp_path


def names(inputs):
    return [sample['img_path'] for sample in list_images(inputs)]


def test_folders_patterns_and_files(photos):
    everything = [str(photos / name) for name in ('a.JPG', 'b.png', 'deep/c.jpg')]
    assert names(photos) == names(str(photos)) == everything
    assert names(f'{photos}/*') == everything[:2]
    assert names(f'{photos}/**/*.jpg') == everything[2:]
    assert names([photos / 'b.png', photos / 'deep']) == everything[1:]
    assert names((photos / 'b.png').as_uri()) == [str(photos / 'b.png')]


def test_addresses_are_left_to_the_reader():
    assert names('http://localhost/a.jpg?size=*') == ['http://localhost/a.jpg?size=*']


def test_arrays_and_pillow_images_share_one_colour_order(photos):
    red = Image.new('RGB', (2, 3), 'red')
    blue_first = np.zeros((3, 2, 3), dtype=np.uint8)
    blue_first[..., 2] = 255
    samples = list_images([red, blue_first, Image.open(photos / 'b.png')])
    np.testing.assert_array_equal(samples[0]['img'], samples[1]['img'])
    assert [s['img_path'] for s in samples] == ['image 0', 'array 1', str(photos / 'b.png')]


def encoded_image(mode, **kwargs):
    """Pixels that differ everywhere, as a file and as Pillow opens it."""
    grey = np.linspace(0, 65535, 4 * 6).reshape(6, 4).astype(np.uint16)
    image = Image.fromarray(grey) if mode == 'I;16' else Image.fromarray(grey >> 8).convert(mode)
    stream = io.BytesIO()
    image.save(stream, 'PNG', **kwargs)
    return stream.getvalue(), Image.open(stream)


@pytest.mark.parametrize('mode', ['I;16', 'L', 'RGBA', 'P'])
@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_pillow_images_files_and_uploads_have_the_same_pixels(mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, image = encoded_image(mode, exif=exif)
    (sample,) = list_images(image)
    of_file = decode_image(data, 'a.png')
    assert of_file.shape == ((4, 6, 3) if orientation == 6 else (6, 4, 3))
    assert len(np.unique(of_file)) == 24
    np.testing.assert_array_equal(sample['img'], of_file)
    uploaded, suffix = decode_upload(data, max_pixels=24)
    np.testing.assert_array_equal(uploaded, of_file)
    assert suffix == '.png'


def test_what_is_no_image_is_named_without_addresses_of_objects():
    with pytest.raises(CorruptImageError, match=r'a\.png.*Pillow knows no such format') as caught:
        decode_image(b'no picture', 'a.png')
    assert ' at 0x' not in str(caught.value)


@pytest.mark.parametrize(
    ('inputs', 'error', 'message'),
    [
        ([], ValueError, 'the list of inputs is empty'),
        ([3], TypeError, 'input 0 is a int'),
        (Image.new('F', (2, 2)), ValueError, 'floating-point pixels'),
        ('nowhere/*.jpg', FileNotFoundError, r'no image file matches nowhere/\*.jpg'),
    ],
)
def test_mistakes(inputs, error, message):
    with pytest.raises(error, match=message):
        list_images(inputs)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no image file'):
        list_images(tmp_path)
