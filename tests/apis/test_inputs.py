import numpy as np
import pytest
from PIL import Image

from vitdown.apis import list_images


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


@pytest.mark.parametrize(
    ('inputs', 'error', 'message'),
    [
        ([], ValueError, 'the list of inputs is empty'),
        ([3], TypeError, 'input 0 is a int'),
        ('nowhere/*.jpg', FileNotFoundError, r'no image file matches nowhere/\*.jpg'),
    ],
)
def test_mistakes(inputs, error, message):
    with pytest.raises(error, match=message):
        list_images(inputs)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no image file'):
        list_images(tmp_path)
