"""The search page as a client that means no good sees it; tests/browser looks at it as a user."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from vitdown.apis import ReIDInferencer, open_gallery
from vitdown.apis.search_page import PageSettings, create_app
from vitdown.evaluation.index import GalleryIndex

NAME = '0100_c2s1_000001_00.jpg'
HOST = 'http://localhost'


@pytest.fixture(scope='module')
def reid(tiny_config, tiny_checkpoint):
    return ReIDInferencer(tiny_config, tiny_checkpoint, device='cpu')


@pytest.fixture(scope='module')
def photos(market_root):
    return market_root / 'bounding_box_test'


@pytest.fixture(scope='module')
def gallery(reid, photos):
    cameras = [int(path.name[6]) for path in sorted(photos.iterdir())]
    return reid.build_index(photos, metadata={'camera': cameras})


def client(reid, gallery, **settings) -> TestClient:
    return TestClient(create_app(reid, gallery, PageSettings(**settings)), HOST)


@pytest.fixture(scope='module')
def page(reid, gallery):
    return client(reid, gallery)


def upload(data: bytes, **fields) -> dict:
    return dict(files={'image': ('query.jpg', data, 'image/jpeg')}, data=fields)


def matches(text: str) -> list[str]:
    """Names of the pictures that were found, in their order."""
    return [part.split('"')[0] for part in text.split('alt="')[1:]][1:]


def png_head(width: int, height: int) -> bytes:
    """A file that says it is a huge picture."""
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', head), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_an_upload_finds_itself_first(page, photos):
    response = page.post('/search', **upload((photos / NAME).read_bytes(), k='4'))
    assert response.status_code == 200
    found = matches(response.text)
    assert len(found) == 4
    assert found[0] == NAME


def test_conditions_narrow_the_search(page, photos):
    data = (photos / NAME).read_bytes()
    fields = {'where camera': '1,3', 'k': '20'}
    found = matches(page.post('/search', **upload(data, **fields)).text)
    assert {name[6] for name in found} == {'1', '3'}
    nothing = page.post('/search', **upload(data, **{'where camera': '9'}))
    assert 'Nothing in the gallery' in nothing.text


def test_a_gallery_picture_is_a_query_too(page, photos):
    number = sorted(path.name for path in photos.iterdir()).index(NAME)
    assert matches(page.get(f'/search?id={number}').text)[0] == NAME


def test_pictures_come_small_and_encoded_anew(page):
    response = page.get('/image/3')
    assert response.headers['content-type'] == 'image/jpeg'
    assert Image.open(io.BytesIO(response.content)).size == (16, 32)


def test_attention_over_query_and_matches(page, photos):
    response = page.post('/search', **upload((photos / NAME).read_bytes(), attention='1', k='2'))
    assert response.text.count('?attention=1"') == 2
    plain, overlaid = (
        np.asarray(Image.open(io.BytesIO(page.get(path).content)), dtype=float)
        for path in ('/image/3', '/image/3?attention=1')
    )
    assert plain.shape == overlaid.shape == (32, 16, 3)
    assert np.abs(plain - overlaid).mean() > 10


@pytest.mark.parametrize(
    ('data', 'status', 'message'),
    [
        (b'no picture', 400, 'no JPEG, PNG, WebP or BMP'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 400, 'no JPEG, PNG, WebP or BMP'),
        (png_head(10000, 4001), 400, 'more than 40 million pixels'),
        (png_head(60000, 60000), 400, 'more than 40 million pixels'),
        (png_head(60, 60), 400, 'damaged'),
        (b'x' * 10_000_001, 413, 'more than 10 MB'),
    ],
    ids=['text', 'svg', 'large', 'huge', 'torn', 'long'],
)
def test_uploads_that_are_refused(page, data, status, message):
    response = page.post('/search', **upload(data))
    assert (response.status_code, message in response.text) == (status, True)


def test_a_huge_body_is_not_read_to_its_end(page):
    sent = 0

    def endless():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(200):
            sent += 1
            yield bytes(1_000_000)

    headers = {'content-type': 'multipart/form-data; boundary=x'}
    assert page.post('/search', content=endless(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'k': '101'}, 'must be 1 to 100'),
        ({'k': 'many'}, 'invalid literal'),
        ({'where camera': 'north'}, 'camera'),
    ],
)
def test_forms_that_are_refused(page, photos, fields, message):
    response = page.post('/search', **upload((photos / NAME).read_bytes(), **fields))
    assert (response.status_code, message in response.text) == (400, True)


HUGE = f'/image/{10**30}'


@pytest.mark.parametrize(
    'path',
    ['/search', '/search?id=none', '/search?id=999', '/image/999', HUGE, f'/search?id={10**30}'],
)
def test_unknown_pictures(page, path):
    assert page.get(path).status_code in (400, 404)


@pytest.mark.parametrize(
    'path',
    ['/image/..%2f..%2fetc%2fpasswd', '/static/..%2fapp.py', '/static/../app.py', '/image/-1'],
)
def test_no_way_to_other_files(page, path):
    response = page.get(path)
    assert response.status_code == 404
    assert 'import' not in response.text


def test_only_pictures_that_the_gallery_names_are_read(reid, tmp_path):
    (tmp_path / 'secret.txt').write_text('secret')
    gallery = GalleryIndex(24, model=reid.fingerprint)
    paths = ['secret.txt', 'gone.jpg', 'http://127.0.0.1:9/a.jpg']
    gallery.add(np.eye(3, 24, dtype=np.float32), metadata={'path': paths})
    page = client(reid, gallery, image_root=tmp_path)
    answers = [page.get(f'/image/{number}') for number in range(3)]
    assert [answer.status_code for answer in answers] == [404] * 3
    assert 'secret' not in answers[0].text


def test_names_can_not_become_markup(reid, photos):
    gallery = GalleryIndex(24, model=reid.fingerprint)
    name = '<script>alert(1)</script>'
    gallery.add(np.eye(1, 24, dtype=np.float32), metadata={'path': [name], 'site': [name]})
    text = client(reid, gallery).post('/search', **upload((photos / NAME).read_bytes())).text
    assert '<script>alert' not in text
    assert '&lt;script&gt;' in text


def test_other_hosts_and_origins_are_refused(page, photos):
    assert page.get('/', headers={'host': 'evil.example'}).status_code == 400
    data = (photos / NAME).read_bytes()
    evil = page.post('/search', headers={'origin': 'http://evil.example'}, **upload(data))
    assert evil.status_code == 403
    own = page.post('/search', headers={'origin': HOST}, **upload(data))
    assert own.status_code == 200


def test_headers_keep_browsers_to_the_page(page):
    headers = page.get('/').headers
    assert "default-src 'none'" in headers['content-security-policy']
    assert headers['x-content-type-options'] == 'nosniff'
    assert headers['cache-control'] == 'no-store'


def test_the_token_opens_the_page(reid, gallery):
    page = client(reid, gallery, token='secret')
    assert page.get('/', follow_redirects=False).headers['location'] == '/login'
    for path in ('/image/0', '/search?id=0'):
        assert page.get(path).status_code == 401
    assert page.post('/login', data={'token': 'wrong'}).status_code == 401
    assert page.get('/image/0', headers={'authorization': 'Bearer secret'}).status_code == 200
    assert page.get('/image/0').status_code == 401
    assert page.post('/login', data={'token': 'secret'}).status_code == 200
    assert 'secret' not in str(page.cookies)
    assert page.get('/image/0').status_code == 200


def test_nothing_can_be_added_by_default(page, photos):
    response = page.post('/add', **upload((photos / NAME).read_bytes()))
    assert response.status_code == 404
    assert 'id="add"' not in page.get('/').text


def test_adding_when_allowed(reid, photos, tmp_path):
    reid.build_index(photos, metadata={'camera': [1] * 25}).save(tmp_path / 'gallery')
    gallery = open_gallery(tmp_path / 'gallery')
    page = client(
        reid, gallery, upload_dir=tmp_path / 'added', gallery_dir=tmp_path / 'gallery'
    )  # fmt: skip
    stream = io.BytesIO()
    Image.new('RGB', (16, 32), 'green').save(stream, 'PNG')
    files = {'image': ('../../evil.sh', stream.getvalue(), 'image/png')}
    for camera in ('', '9' * 30):
        refused = page.post('/add', files=files, data={'column camera': camera})
        assert (refused.status_code, len(gallery)) == (400, 25)
    response = page.post('/add', files=files, data={'column camera': '4'})
    assert response.status_code == 200
    (added,) = (tmp_path / 'added').iterdir()
    assert added.suffix == '.png'
    assert matches(response.text)[0] == added.name
    saved = open_gallery(tmp_path / 'gallery')
    assert (len(saved), saved.metadata['camera'][-1]) == (26, 4)


def test_galleries_that_can_not_be_shown(reid):
    with pytest.raises(ValueError, match='empty or has no column'):
        client(reid, GalleryIndex(24))
