import numpy as np
import pytest
from PIL import Image

from vitdown.visualization import draw_ranking_list, save_picture
from vitdown.visualization.ranking_list import QUERY_COLOUR, RIGHT_COLOUR, WRONG_COLOUR


def plain(value: int, shape=(20, 10)) -> np.ndarray:
    return np.full((*shape, 3), value, np.uint8)


def frame_colours(picture: Image.Image, count: int, width: int = 80) -> list:
    """Colour of the lower left corner of each frame, and of each picture's centre."""
    pixels = picture.load()
    cell, gap, height = width + 8, 6, 160 + 8
    lefts = [gap] + [gap + cell + 2 * gap + i * (cell + gap) for i in range(count - 1)]
    return [(pixels[x + 1, gap + height - 2], pixels[x + cell // 2, gap + 84]) for x in lefts]


def test_frames_tell_right_from_wrong():
    picture = draw_ranking_list(plain(10), [plain(20), plain(30), plain(40)], [True, False, True])
    assert frame_colours(picture, 4) == [
        (QUERY_COLOUR, (10, 10, 10)),
        (RIGHT_COLOUR, (20, 20, 20)),
        (WRONG_COLOUR, (30, 30, 30)),
        (RIGHT_COLOUR, (40, 40, 40)),
    ]


def test_marks_differ_without_colour():
    right = draw_ranking_list(plain(10), [plain(20)], [True]).convert('L')
    wrong = draw_ranking_list(plain(10), [plain(20)], [False]).convert('L')
    white = [np.asarray(p)[6:20, -26:-12] == 255 for p in (right, wrong)]
    assert white[0].any()
    assert white[1].any()
    assert (white[0] != white[1]).any()


@pytest.mark.parametrize('shape', [(20, 10), (10, 40), (8, 60), (1, 1)])
def test_any_shape_and_grey_images(shape):
    grey = [plain(20, shape)[..., 0], plain(30, shape)[..., :1]]
    picture = draw_ranking_list(plain(10, shape), grey, [True, False])
    # The picture's middle shows the image, whatever its aspect.
    centres = [centre for _, centre in frame_colours(picture, 3)]
    assert centres == [(10, 10, 10), (20, 20, 20), (30, 30, 30)]


def test_captions_make_room():
    bare = draw_ranking_list(plain(10), [plain(20)], [True])
    captioned = draw_ranking_list(plain(10), [plain(20)], [True], ['a', 'b'], [['1: 0.9']])
    assert captioned.height == bare.height + 2 * 14
    assert (np.asarray(captioned)[-30:] < 100).any()


def test_empty_list_shows_the_query():
    assert frame_colours(draw_ranking_list(plain(10), [], []), 1) == [(QUERY_COLOUR, (10, 10, 10))]


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match='1 gallery images, 2 matches'):
        draw_ranking_list(plain(10), [plain(20)], [True, False])


def test_names_are_safe(tmp_path):
    picture = Image.new('RGB', (4, 4))
    names = [
        save_picture(picture, tmp_path / 'new', name).name
        for name in ('/data/query/0001_c1.jpg', 'a/né:ko?.png', '..')
    ]
    assert names == ['0001_c1.png', 'né_ko_.png', 'query.png']
    assert len(list((tmp_path / 'new').iterdir())) == 3


@pytest.mark.parametrize(
    'name', ['a' * 300 + '.jpg', '車' * 200 + '.jpg', 'x' + 'é' * 200 + '.jpg']
)
def test_long_names_fit_the_file_system(tmp_path, name):
    path = save_picture(Image.new('RGB', (4, 4)), tmp_path, name)
    assert name.startswith(path.stem)
    assert path.is_file()
