"""The search page as a client that means no good sees it; tests/browser looks at it as a user."""

import asyncio
import base64
import html
import io
import re
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from tools import serve
from vitdown.apis import ReIDInferencer, open_gallery
from vitdown.apis.search_page import PageSettings, create_app, guard
from vitdown.apis.search_page.images import RecentUploads
from vitdown.engine.launch import ConfigError, load_config
from vitdown.evaluation.index import GalleryIndex
from vitdown.visualization.attention_map import draw_rollout

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


def scores(text: str) -> list[str]:
    return re.findall(r'class="score">([^<]+)<', text)


def query_size(text: str) -> tuple[int, int]:
    """Width and height of the query as the page shows it."""
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', text)[1]
    return Image.open(io.BytesIO(base64.b64decode(data))).size


def png(image: Image.Image, **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, 'PNG', **kwargs)
    return stream.getvalue()


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


def test_a_page_of_matches_is_searched_on(page, photos):
    fields = {'where camera': '2, 3', 'k': '3'}
    text = page.post('/search', **upload((photos / NAME).read_bytes(), **fields)).text
    assert len(matches(text)) == 3
    # From a match, the conditions stay ...
    link = html.unescape(re.search(r'href="(/search\?id=[^"]+)"', text)[1])
    followed = page.get(link).text
    assert matches(followed)[0] == matches(text)[0]
    assert {name[6] for name in matches(followed)} <= {'2', '3'}
    assert 'name="where camera" value="2, 3"' in followed
    # ... and an upload is searched under others without being sent again.
    kept = re.search(r'name="upload" value="([^"]+)"', text)[1]
    again = page.get('/search', params={'upload': kept, 'where camera': '', 'k': '2'}).text
    assert matches(again)[0] == NAME
    assert len(matches(again)) == 2
    # Mistakes leave the forms as they were.
    wrong = page.get('/search', params={'upload': kept, **fields, 'k': '101'})
    assert wrong.status_code == 400
    assert f'name="upload" value="{kept}"' in wrong.text
    torn = page.post('/search', **upload(b'no picture', **fields))
    for answer in (wrong, torn):
        assert 'name="where camera" value="2, 3"' in answer.text
    gone = page.get('/search?upload=none')
    assert (gone.status_code, 'upload it again' in gone.text) == (404, True)


def test_old_uploads_make_room():
    uploads = RecentUploads(max_bytes=5)
    first, second, third = map(uploads.keep, (b'aa', b'bbb', b'c'))
    assert [uploads.get(name) for name in (first, second, third)] == [None, b'bbb', b'c']


def test_a_gallery_picture_is_a_query_too(page, photos):
    number = sorted(path.name for path in photos.iterdir()).index(NAME)
    assert matches(page.get(f'/search?id={number}').text)[0] == NAME


def test_pictures_come_small_and_encoded_anew(page):
    response = page.get('/image/3')
    assert response.headers['content-type'] == 'image/jpeg'
    assert Image.open(io.BytesIO(response.content)).size == (16, 32)


def test_pictures_with_more_behind_them(reid, gallery, photos, tmp_path):
    """As phones write them, with a map of depth or light: the first is the picture."""
    image, stream = Image.open(photos / NAME), io.BytesIO()
    image.save(stream, 'MPO', save_all=True, append_images=[image.resize((8, 16))], quality=95)
    page = client(reid, reid.build_index(photos), upload_dir=tmp_path)
    assert matches(page.post('/search', **upload(stream.getvalue())).text)[0] == NAME
    assert page.post('/add', **upload(stream.getvalue())).status_code == 200
    (added,) = tmp_path.iterdir()
    assert (added.suffix, added.read_bytes()) == ('.jpg', stream.getvalue())


def test_relative_paths_begin_at_the_image_root(reid, photos):
    gallery = GalleryIndex(24, model=reid.fingerprint)
    gallery.add(np.eye(1, 24, dtype=np.float32), metadata={'path': [NAME]})
    for root, status in [(photos, 200), (photos.parent, 404)]:
        assert client(reid, gallery, image_root=root).get('/image/0').status_code == status


def test_large_pictures_are_shown_small(reid, tmp_path):
    Image.new('RGB', (1200, 600), 'green').save(tmp_path / 'large.jpg')
    page = client(reid, reid.build_index(tmp_path))
    assert Image.open(io.BytesIO(page.get('/image/0').content)).size == (512, 256)
    assert query_size(page.get('/search?id=0').text) == (512, 256)


def test_pictures_lie_as_their_camera_says(reid, page, photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.open(photos / NAME).transpose(Image.Transpose.ROTATE_90)
    data = png(lying, exif=exif)
    text = page.post('/search', **upload(data)).text
    assert query_size(text) == (16, 32)
    assert matches(text)[0] == NAME
    (tmp_path / 'lying.png').write_bytes(data)
    page = client(reid, reid.build_index(tmp_path))
    assert Image.open(io.BytesIO(page.get('/image/0').content)).size == (16, 32)
    assert query_size(page.get('/search?id=0').text) == (16, 32)


def test_attention_over_query_and_matches(reid, page, photos):
    response = page.post('/search', **upload((photos / NAME).read_bytes(), attention='1', k='2'))
    assert response.text.count('?attention=1"') == 2
    plain, overlaid = (
        np.asarray(Image.open(io.BytesIO(page.get(path).content)), dtype=float)
        for path in ('/image/3', '/image/3?attention=1')
    )
    assert page.get('/image/3?attention=0').content == page.get('/image/3').content
    assert 'attention=1"' not in page.get('/search?id=3&attention=0').text
    assert plain.shape == overlaid.shape == (32, 16, 3)
    assert np.abs(plain - overlaid).mean() > 10
    ((image, attention),) = reid.attend(sorted(photos.iterdir())[3])
    # As JPEG keeps it, from blue to red
    expected = draw_rollout(image, attention).mean((0, 1))
    assert abs(expected[0] - expected[2]) > 10
    np.testing.assert_allclose(overlaid.mean((0, 1)), expected, atol=4)


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


def test_the_limit_of_pixels_is_that_of_the_settings(reid, gallery, photos):
    data = (photos / NAME).read_bytes()
    for pixels, status in [(16 * 32, 200), (16 * 32 - 1, 400)]:
        page = client(reid, gallery, max_pixels=pixels)
        assert page.post('/search', **upload(data)).status_code == status


def test_a_huge_body_is_not_read_to_its_end(page):
    sent, statuses = 0, []

    async def receive():
        nonlocal sent
        sent += 1
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        part = bytes(1_000_000) if sent > 1 else head
        return {'type': 'http.request', 'body': part, 'more_body': sent < 40}

    async def send(message):
        statuses.append(message.get('status'))

    # In chunks, so that nothing says how long it will be; TestClient would join them.
    headers = {b'host': b'localhost', b'content-type': b'multipart/form-data; boundary=x'}
    scope = {'type': 'http', 'method': 'POST', 'path': '/search', 'query_string': b''}
    asyncio.run(page.app({**scope, 'headers': list(headers.items())}, receive, send))
    assert (statuses[0], sent) == (413, 11)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'k': '101'}, 'must be 1 to 100'),
        ({'k': 'many'}, 'must be 1 to 100'),
        ({'where camera': 'north'}, 'camera'),
        ({'where kamera': '1'}, 'no column &#39;kamera&#39;'),
        ({'where path': NAME}, 'no column &#39;path&#39;'),
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
    ['/image/..%2f..%2fetc%2fpasswd', '/static/..%2fapp.py', '/static/app.py', '/image/-1'],
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
    # Another port is another server, and sandboxed pages have no origin.
    for origin, status in [
        (f'{HOST}:8000', 303),
        (f'{HOST}:9000', 403),
        (HOST, 403),
        ('null', 403),
        ('http://[bad', 403),
    ]:
        headers = {'host': 'localhost:8000', 'origin': origin}
        answer = page.post('/search', headers=headers, follow_redirects=False, **upload(data))
        assert answer.status_code == status, origin
    for site, status in [('cross-site', 403), ('same-origin', 303), ('none', 303)]:
        headers = {'sec-fetch-site': site}
        answer = page.post('/search', headers=headers, follow_redirects=False, **upload(data))
        assert answer.status_code == status, site


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
    forged = {'cookie': 'vitdown_session=secret'}
    assert page.get('/image/0', headers=forged).status_code == 401
    admitted = page.post('/login', data={'token': 'secret'}, follow_redirects=False)
    cookie = admitted.headers['set-cookie'].lower().split('; ')
    assert {'httponly', 'samesite=strict'} < set(cookie)
    assert 'secret' not in str(page.cookies)
    for path in ('/', '/image/0', '/search?id=0'):
        assert page.get(path, follow_redirects=False).status_code == 200


@pytest.mark.parametrize(
    'foreign', ['a/b=1', 'prefs={"a": 1, "b": [2]}', 'x=a b', 'foo[bar]=1', 'flag']
)
def test_cookies_of_other_servers_leave_the_session_alone(reid, gallery, foreign):
    page = client(reid, gallery, token='secret')
    assert page.get('/image/0', headers={'cookie': foreign}).status_code == 401
    admitted = page.post('/login', data={'token': 'secret'}, follow_redirects=False)
    session = admitted.headers['set-cookie'].split(';')[0]
    page.cookies.clear()
    for cookies in (f'{foreign}; {session}', f'{session}; {foreign}'):
        assert page.get('/image/0', headers={'cookie': cookies}).status_code == 200


def test_tokens_of_any_letters(reid, gallery):
    page = client(reid, gallery, token='schlüssel')
    for given, status in [('schlüssel', 200), ('schlÜssel', 401), ('\udcfc', 401)]:
        headers = {'authorization': f'Bearer {given}'.encode('utf-8', 'surrogateescape')}
        assert page.get('/image/0', headers=headers).status_code == status
    assert page.post('/login', data={'token': 'schlüssel'}).status_code == 200
    # An environment variable need not be UTF-8.
    page = client(reid, gallery, token='\udcfc')
    assert page.get('/image/0').status_code == 401


def test_tokens_can_not_be_tried_by_the_thousand(reid, gallery, monkeypatch):
    page, now = client(reid, gallery, token='secret'), [0.0]
    monkeypatch.setattr(guard.time, 'monotonic', lambda: now[0])
    assert page.post('/login', data={'token': 'secret'}, follow_redirects=False).status_code == 303
    session = dict(page.cookies)
    page.cookies.clear()
    for _ in range(20):  # nothing was tried
        assert page.get('/image/0').status_code == 401
    for tried in range(12):
        wrong = {'authorization': f'Bearer {tried}'}
        status = 401 if tried < 10 else 429
        if tried % 2:
            assert page.get('/image/0', headers=wrong).status_code == status
        else:
            assert page.post('/login', data={'token': tried}).status_code == status
    right = {'authorization': 'Bearer secret'}
    assert page.get('/image/0', headers=right).status_code == 429
    answer = page.post('/login', data={'token': 'secret'})
    assert (answer.status_code, 'too many wrong tokens' in answer.text) == (429, True)
    page.cookies.update(session)
    assert page.get('/image/0').status_code == 200
    page.cookies.clear()
    now[0] = 61.0
    assert page.get('/image/0', headers=right).status_code == 200


def test_nothing_can_be_added_by_default(page, gallery, photos):
    response = page.post('/add', **upload((photos / NAME).read_bytes(), **{'column camera': '1'}))
    assert (response.status_code, len(gallery)) == (404, 25)
    assert 'id="add"' not in page.get('/').text


def test_adding_needs_the_token(reid, gallery, photos, tmp_path):
    page = client(reid, gallery, upload_dir=tmp_path / 'added', token='secret')
    response = page.post('/add', **upload((photos / NAME).read_bytes(), **{'column camera': '1'}))
    assert (response.status_code, len(gallery)) == (401, 25)
    assert not (tmp_path / 'added').exists()


def test_adding_when_allowed(reid, photos, tmp_path):
    reid.build_index(photos, metadata={'camera': [1] * 25}).save(tmp_path / 'gallery')
    gallery = open_gallery(tmp_path / 'gallery')
    folders = dict(upload_dir=tmp_path / 'added', gallery_dir=tmp_path / 'gallery')
    page = client(reid, gallery, max_pixels=16 * 32, **folders)
    files = {'image': ('../../evil.sh', png(Image.new('RGB', (16, 32), 'green')), 'image/png')}
    large = png(Image.new('RGB', (17, 32)))
    small = files['image'][1]
    for data, camera, message in [
        (small, '', 'every column needs a value'),
        (small, '9' * 30, 'is out of its range'),
        (large, '4', 'million pixels'),
    ]:
        refused = page.post('/add', **upload(data, **{'column camera': camera}))
        assert (refused.status_code, len(gallery)) == (400, 25)
        assert message in refused.text
    assert not (tmp_path / 'added').exists()
    response = page.post('/add', files=files, data={'column camera': '4'})
    assert response.status_code == 200
    (added,) = (tmp_path / 'added').iterdir()
    assert added.suffix == '.png'
    assert matches(response.text)[0] == added.name
    saved = open_gallery(tmp_path / 'gallery')
    assert (len(saved), saved.metadata['camera'][-1]) == (26, 4)


def test_what_can_not_be_saved_is_not_kept(reid, photos, tmp_path, monkeypatch):
    def full(folder):
        raise OSError('no space left')

    gallery = reid.build_index(photos)
    monkeypatch.setattr(gallery, 'save', full)
    page = client(reid, gallery, upload_dir=tmp_path / 'added', gallery_dir=tmp_path / 'gallery')
    response = page.post('/add', **upload((photos / NAME).read_bytes()))
    assert response.status_code == 500
    assert 'could not be kept: no space left' in response.text
    assert len(gallery) == 25
    assert not list((tmp_path / 'added').iterdir())


def test_models_that_embed_cameras(tiny_config, photos, tmp_path):
    cfg = load_config(str(tiny_config), {'model.backbone.sie': dict(num_cameras=4)})
    torch.manual_seed(0)
    sie = ReIDInferencer(cfg, device='cpu')
    torch.nn.init.normal_(sie.model.backbone.sie.embed, std=0.1)
    cameras = [int(path.name[6]) - 1 for path in sorted(photos.iterdir())]
    gallery = sie.build_index(photos, metadata={'camera': cameras})
    page = client(sie, gallery, upload_dir=tmp_path)
    data = (photos / NAME).read_bytes()
    assert 'name="query camera" value="" min="0" max="3" required' in page.get('/').text
    for camera in ('', '4', 'north'):
        refused = page.post('/search', **upload(data, **{'query camera': camera}))
        assert refused.status_code == 400
        assert 'give the camera of the picture, 0 to 3' in refused.text
    other, text = (
        page.post('/search', **upload(data, **{'query camera': camera, 'attention': '1'})).text
        for camera in '21'
    )
    assert matches(text)[0] == NAME
    assert scores(text)[0] == '1.000'
    assert scores(other) != scores(text)
    # The gallery knows the cameras of its own.
    number = sorted(path.name for path in photos.iterdir()).index(NAME)
    assert scores(page.get(f'/search?id={number}&attention=1').text) == scores(text)
    assert page.get('/image/1?attention=1').status_code == 200
    refused = page.post('/add', **upload(data, **{'column camera': '9'}))
    assert (refused.status_code, 'embeds the cameras 0 to 3, not 9' in refused.text) == (400, True)
    assert page.post('/add', **upload(data, **{'column camera': '3'})).status_code == 200
    # It was embedded with its own camera.
    ((found,),) = sie.search(photos / NAME, gallery, 1, {'camera': 3}, {'camera': [3]})
    assert found.score == pytest.approx(1, abs=1e-5)
    bare = GalleryIndex(24, model=sie.fingerprint)
    bare.add(np.eye(1, 24, dtype=np.float32), metadata={'path': ['a.jpg']})
    with pytest.raises(ValueError, match="no column 'camera': embed its images again with"):
        client(sie, bare)


def test_addresses_of_ipv6(
    reid, gallery, tmp_path, tiny_config, tiny_checkpoint, monkeypatch, capsys
):
    class Socket:
        def getsockname(self):
            return '::1', 7861

    served = []
    monkeypatch.setattr(uvicorn.Config, 'bind_socket', lambda config: Socket())
    monkeypatch.setattr(uvicorn.Server, 'run', lambda server, sockets: served.append(server))
    gallery.save(tmp_path / 'gallery')
    command = ['serve.py', tiny_config, tiny_checkpoint, tmp_path / 'gallery', '--host', '::1']
    monkeypatch.setattr(sys, 'argv', list(map(str, command)))
    serve.main()
    address = capsys.readouterr().out.split()[-1]
    assert address == 'http://[::1]:7861'
    page = TestClient(served[0].config.app, address)
    assert page.get('/').status_code == 200


@pytest.mark.parametrize('value', ['70000', '-1'])
def test_ports_that_are_none(monkeypatch, capsys, value):
    monkeypatch.setattr(sys, 'argv', ['serve.py', 'c.py', 'c.pth', 'gallery', f'--port={value}'])
    with pytest.raises(SystemExit):
        serve.parse_args()
    assert f'--port: must be 0 to 65535, got {value}' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['--max-upload-mb', '--max-megapixels'])
@pytest.mark.parametrize('value', ['-5', '0', 'nan', 'inf'])
def test_limits_must_be_positive(monkeypatch, capsys, name, value):
    monkeypatch.setattr(sys, 'argv', ['serve.py', 'c.py', 'c.pth', 'gallery', f'{name}={value}'])
    with pytest.raises(SystemExit):
        serve.parse_args()
    assert f'{name}: must be a positive number, got {value}' in capsys.readouterr().err


def test_added_pictures_need_a_folder_that_can_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('no folder')
    for place in (tmp_path / 'file', tmp_path / 'file' / 'deep'):
        command = ['serve.py', 'c.py', 'c.pth', 'gallery', '--allow-add', str(place)]
        monkeypatch.setattr(sys, 'argv', command)
        with pytest.raises(ConfigError, match='--allow-add .*can not be kept there'):
            serve.main()


def test_galleries_that_can_not_be_shown(reid):
    with pytest.raises(ValueError, match='empty or has no column'):
        client(reid, GalleryIndex(24))
