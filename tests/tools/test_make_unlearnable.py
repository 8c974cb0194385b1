"""tools/dataset_converters/make_unlearnable.py as a user runs it, and the secrecy of the key."""

import csv
import errno
import hashlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, run_tool
from vitdown.datasets import CSVReIDDataset, SyntheticReID
from vitdown.datasets.transforms import check_key_sources
from vitdown.datasets.transforms.decoding import CorruptImageError
from vitdown.datasets.unlearnable import (
    Key,
    KeyUnavailableError,
    class_filters,
    convolve_image,
    poison_mask,
)
from vitdown.datasets.unlearnable import protect as protect_module
from vitdown.datasets.unlearnable.protect import protect, verify, weaknesses
from vitdown.datasets.unlearnable.settings import ProtectionError, Settings, SourceImage
from vitdown.datasets.unlearnable.sources import class_folder_images, dataset_images
from vitdown.engine.launch import build_runner, evaluate, load_config
from vitdown.models.distillation.teacher import build_teacher

TOOL = 'tools/dataset_converters/make_unlearnable.py'
SECRET = 'correct-horse-battery-staple-7261'


@pytest.fixture
def key_file(tmp_path) -> Path:
    path = tmp_path / 'secret.key'
    path.write_text(SECRET + '\n')
    return path


@pytest.fixture
def tool(monkeypatch, capsys):
    """Call the tool in this process; gives its exit status and what it printed."""
    monkeypatch.delenv('VITDOWN_UNLEARNABLE_KEY', raising=False)

    def call(*args) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', [TOOL, *map(str, args)])
        try:
            runpy.run_path(str(ROOT / TOOL), run_name='__main__')
            status = 0
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


def grey_images(number: int, read=lambda index: np.full((4, 4, 3), 7, np.uint8)) -> list:
    """Images of one class, whose pixels a function of their index gives."""
    return [
        SourceImage(f'a/{index}.png', 0, 'a', lambda index=index: read(index))
        for index in range(number)
    ]


def write_photos(root: Path, number: int = 4, size: int = 24) -> Path:
    """Two classes of noise, in formats of all kinds, with a file that is no image."""
    rng = np.random.default_rng(0)
    for name in ('cats', 'dogs/young'):
        (root / name).mkdir(parents=True)
        for index in range(number):
            pixels = rng.integers(0, 256, (size, size + index, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f'{index:03d}.png')
    Image.fromarray(pixels[..., 0]).save(root / 'cats/grey.bmp')
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(root / 'dogs/alpha.png')
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(root / 'dogs/black.webp', lossless=True)
    (root / 'cats/Thumbs.db').write_bytes(b'x')
    (root / 'notes.txt').write_text('x')
    return root


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / 'photos')


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob('*')
        if path.is_file()
    }


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB'))


def assert_no_secret(*roots: Path, text: str = '') -> None:
    """Neither the key nor its seed nor a filter is in any file or in the text."""
    seed = Key(SECRET).seed
    cell = class_filters(seed, 1, 9, 0.06)[0].min()
    needles = [SECRET.encode(), str(seed[0]).encode(), np.float64(cell).tobytes(),
               np.float32(cell).tobytes(), repr(float(cell)).encode()]  # fmt: skip
    # A digest without salt is the seed of the filters itself, or lets many keys be tried at once.
    for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5):
        for ending in ('', '\n'):
            needles.append(digest((SECRET + ending).encode()).hexdigest().encode())
    contents = [path.read_bytes() for root in roots for path in root.rglob('*') if path.is_file()]
    assert contents or not roots
    for content in (*contents, text.encode()):
        assert not any(needle in content for needle in needles)


def test_protects_and_verifies_a_folder(tool, photos, tmp_path, key_file):
    before = digests(photos)
    output = tmp_path / 'protected'
    command = (photos, output, '--key-file', key_file)
    status, text = tool(*command, '--kernel-size', 3, '--blur', 0.3)
    assert status == 0
    assert '11 images of 2 classes' in text
    assert '2 files left out, not images of a class: notes.txt, cats/Thumbs.db' in text
    assert digests(photos) == before

    filters = class_filters(Key(SECRET).seed, 2, 3, 0.3)
    manifest = json.loads((output / 'conv_unlearnable.json').read_text())
    assert manifest['complete']
    assert len(manifest['files']) == 11
    found = digests(output)
    for entry in manifest['files']:
        assert entry['label'] == entry['source'].startswith('dogs')
        assert entry['filtered'] is True
        assert found[entry['file']] == entry['sha256']
        expected = convolve_image(pixels(photos / entry['source']), filters[entry['label']])
        assert np.array_equal(pixels(output / entry['file']), expected)
    assert 'dogs/young/003.png' in found
    assert 'dogs/black.png' in found
    assert_no_secret(output, text=text)

    assert '11 images match' in tool(*command, '--verify')[1]
    assert digests(output) == found

    Image.fromarray(pixels(output / 'cats/000.png') // 2).save(output / 'cats/000.png')
    (output / 'dogs/young/001.png').unlink()
    (output / 'train.csv').unlink()
    shutil.copy(photos / 'cats/001.png', output / 'dogs/more.png')
    status, text = tool(*command, '--verify')
    assert status == 2
    assert '9 images match' in text
    assert '1 files differ: cats/000.png' in text
    assert '2 files are missing: dogs/young/001.png, train.csv' in text
    assert '1 files are not part of it: dogs/more.png' in text

    # The same command brings all but the foreign file into order again.
    (output / 'dogs/more.png').unlink()
    (output / 'train.csv').write_text('image\n')
    assert '2 files differ: cats/000.png, train.csv' in tool(*command, '--verify')[1]
    assert tool(*command, '--kernel-size', 3, '--blur', 0.3)[0] == 0
    assert digests(output) == found
    assert tool(*command, '--verify')[0] == 0


def test_files_that_were_changed_are_written_anew(photos, tmp_path):
    """Neither another source nor another file in the output passes as protected."""
    output, names = tmp_path / 'out', ('cats/000.png', 'cats/001.png', 'cats/002.png')

    def run() -> dict:
        protect(class_folder_images(photos)[0], output, Key(SECRET), Settings(), progress=False)
        manifest = json.loads((output / 'conv_unlearnable.json').read_text())
        assert manifest['complete']
        found = digests(output)
        assert all(found[entry['file']] == entry['sha256'] for entry in manifest['files'])
        return found

    before = run()
    times = {name: (output / name).stat().st_mtime_ns for name in names}
    shutil.copy(photos / names[0], output / names[0])  # a clean image in the output
    shutil.copy(photos / 'dogs/young/003.png', photos / names[1])  # another original
    after = run()
    assert after[names[0]] == before[names[0]]
    assert after[names[1]] != before[names[1]]
    filt = class_filters(Key(SECRET).seed, 2, 9, 0.06)[0]
    assert np.array_equal(
        pixels(output / names[1]), convolve_image(pixels(photos / names[1]), filt)
    )
    assert (output / names[2]).stat().st_mtime_ns == times[names[2]]
    assert not (output / 'conv_unlearnable.jsonl').exists()


def test_table_and_labels(tmp_path):
    def image(index: int, label: int, **where) -> SourceImage:
        return SourceImage(f'{index}.png', label, f'no {label}',
                           lambda: np.full((4, 4, 3), 7, np.uint8), **where)  # fmt: skip

    images = [image(0, 0, camera=1, view=2), image(1, 1)]
    protect(images, tmp_path / 'out', Key(SECRET), Settings(), progress=False)
    assert (tmp_path / 'out/train.csv').read_text().splitlines() == [
        'image,identity,camera,view,subset', '0.png,no 0,1,2,train', '1.png,no 1,-1,-1,train',
    ]  # fmt: skip
    with pytest.raises(ProtectionError, match='other files: 2 images of 2 classes then, 2 of 2'):
        protect([image(0, 1), image(1, 0)], tmp_path / 'out', Key(SECRET), Settings())


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (['-1', '7'], "class '-1' would be no class in the table"),
        (['-2', '7'], "class '-2' would be no class"),
        (['07', '3', '7'], "classes '07' and '7' would be one class in the table"),
        (['a', 'b '], None),
        (['a', 'a '], "classes 'a' and 'a' would be one class"),
        (['-1', '07', '7', 'zoe'], None),
        ([' '], "class '' would be no class"),
        ([' a', 'b'], "2 file names begin or end with white space.*' a/0.png'"),
    ],
)
def test_classes_survive_the_table(tmp_path, classes, message):
    images = [
        SourceImage(f'{name if name == " a" else label}/{index}.png', label, name,
                    lambda: np.full((4, 4, 3), 7, np.uint8))
        for label, name in enumerate(classes) for index in range(2)
    ]  # fmt: skip
    output = tmp_path / 'out'
    if message:
        with pytest.raises(ProtectionError, match=message):
            protect(images, output, Key(SECRET), Settings(), progress=False)
        assert not output.exists()
        return
    protect(images, output, Key(SECRET), Settings(), progress=False)
    found = CSVReIDDataset('train.csv', 'train', str(output))
    assert found.get_gt_labels().tolist() == [image.label for image in images]
    assert found.metainfo['identity_names'] == [name.strip() for name in classes]


def test_names_of_a_table_are_kept(tool, tmp_path, key_file):
    """Rows of query and gallery, which have them, fit the rows of the protected images."""
    rows = ['image,identity,camera,view,subset', 'a.png,zoe,cam1,,train', 'b.png,bob,,left,train',
            'c.png,zoe,cam0,right,train', 'd.png,amy,cam7,,query',
            'e.png,amy,cam0,,gallery']  # fmt: skip
    source, output = tmp_path / 'source', tmp_path / 'out'
    source.mkdir()
    (source / 'all.csv').write_text('\n'.join(rows) + '\n')
    for row in rows[1:]:
        Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(source / row.split(',')[0])
    status, text = tool(source, output, '--dataset', 'CSVReIDDataset', '--key-file', key_file,
                        '--dataset-options', 'ann_file=all.csv')  # fmt: skip
    assert status == 0, text
    assert (output / 'train.csv').read_text().splitlines() == rows[:4]
    manifest = json.loads((output / 'conv_unlearnable.json').read_text())
    assert [entry['label'] for entry in manifest['files']] == [1, 0, 1]


@pytest.mark.parametrize('option', ['grayscale', 'same_filter', 'webp', 'fraction'])
def test_options_change_the_pixels(photos, tmp_path, option):
    options = {'webp': dict(image_format='webp'), 'fraction': dict(poison_fraction=0.5)}
    settings = Settings(3, 0.3, **options.get(option, {option: True}))
    images, _ = class_folder_images(photos)
    manifest = protect(images, tmp_path / 'out', Key(SECRET), settings, progress=False)
    entries = json.loads(manifest.read_text())['files']
    filters = class_filters(Key(SECRET).seed, 2, 3, 0.3)
    chosen = poison_mask(Key(SECRET).seed, 2, 3, 11, settings.poison_fraction)
    assert [entry['filtered'] for entry in entries] == chosen.tolist()
    assert chosen.all() == (option != 'fraction')
    for entry in entries:
        expected = pixels(photos / entry['source'])
        if entry['filtered']:
            filt = filters[0 if option == 'same_filter' else entry['label']]
            expected = convolve_image(expected, filt, grayscale=option == 'grayscale')
        assert np.array_equal(pixels(tmp_path / 'out' / entry['file']), expected)


def test_verify_compares_all_that_the_manifest_says(photos, tmp_path):
    images, _ = class_folder_images(photos)
    output, key = tmp_path / 'out', Key(SECRET)
    path = protect(images, output, key, Settings(), progress=False)
    manifest = json.loads(path.read_text())
    # The same pixels in other bytes
    with Image.open(output / 'cats/000.png') as image:
        image.save(output / 'cats/000.png', compress_level=1)
    changes = dict(label=1, filtered=False, source='cats/x.png', source_sha256='0')
    for entry, change in zip(manifest['files'][1:], changes.items()):
        entry.update([change])
    path.write_text(json.dumps(manifest))
    found = verify(images, output, key, progress=False)
    assert found.different == ['cats/000.png', *(entry['file'] for entry in manifest['files'][1:5])]
    assert len(found.matching) == 6

    path.write_text(json.dumps(manifest | dict(num_classes=3)))
    with pytest.raises(ProtectionError, match='11 images of 3 classes then, 11 of 2 now'):
        verify(images, output, key, progress=False)


@pytest.mark.parametrize(
    'change',
    [
        b'{', b'[]', b'{}', b'\xff\xfe', dict(complete=None), dict(settings=None),
        dict(settings={'kernel': 3}), dict(settings={'kernel_size': '3'}), dict(key_salt='zz'),
        dict(key_fingerprint=1), dict(num_classes='2'), dict(files=[{'file': 'cats/000.png'}]),
        dict(files=[None]), dict(source_digest=None),
    ],
)  # fmt: skip
def test_damaged_manifests(tmp_path, change):
    images = [SourceImage('a.png', 0, 'a', lambda: np.full((4, 4, 3), 7, np.uint8))]
    path = protect(images, tmp_path, Key(SECRET), Settings(), progress=False)
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change).encode()
    path.write_bytes(change)
    for function in (verify, lambda *args, **kwargs: protect(*args, Settings(), **kwargs)):
        with pytest.raises(ProtectionError, match='conv_unlearnable.json is damaged'):
            function(images, tmp_path, Key(SECRET), progress=False)
    assert path.read_bytes() == change


def test_damaged_journal(tmp_path):
    images = [SourceImage('a.png', 0, 'a', lambda: np.full((4, 4, 3), 7, np.uint8))]
    path = protect(images, tmp_path, Key(SECRET), Settings(), progress=False)
    begun = json.loads(path.read_text()) | dict(complete=False, files=[])
    path.write_text(json.dumps(begun))
    (tmp_path / 'conv_unlearnable.jsonl').write_bytes(b'[]\n{"file": "a.png"}\n\xff\n{"fi')
    protect(images, tmp_path, Key(SECRET), Settings(), progress=False)
    assert verify(images, tmp_path, Key(SECRET), progress=False).matching == ['a.png']


def test_choice_of_images_depends_on_the_number_of_classes(tmp_path):
    """As ConvUnlearnable's does, whether or not images of all classes are there."""
    images, key, settings = grey_images(30), Key(SECRET), Settings(poison_fraction=0.5)
    masks = [poison_mask(key.seed, number, 9, 30, 0.5).tolist() for number in (1, 3)]
    assert masks[0] != masks[1]
    for given, mask in zip((None, 3), masks):
        path = protect(images, tmp_path / str(given), key, settings, 1, False, given)
        assert [entry['filtered'] for entry in json.loads(path.read_text())['files']] == mask
    with pytest.raises(ProtectionError, match='of 3 classes then, 30 of 1 now'):
        verify(images, tmp_path / '3', key, progress=False)
    assert len(verify(images, tmp_path / '3', key, 1, False, 3).matching) == 30
    with pytest.raises(ProtectionError, match='at least 1, since there is the label 0, got 0'):
        protect(images, tmp_path / 'x', key, settings, num_classes=0)


def test_images_are_protected_in_parallel(tmp_path):
    meeting = threading.Barrier(2)

    def read(index: int) -> np.ndarray:
        meeting.wait(timeout=60)
        return np.full((4, 4, 3), 7, np.uint8)

    protect(grey_images(2, read), tmp_path / 'out', Key(SECRET), Settings(), 2, progress=False)


def test_an_interrupted_call_stops(tmp_path, monkeypatch):
    stopped, begun = threading.Event(), []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **options) -> None:
            super().shutdown(**{**options, 'wait': False})
            stopped.set()
            super().shutdown()

    def read(index: int) -> np.ndarray:
        begun.append(index)
        assert index == 0 or stopped.wait(timeout=60)
        return np.full((4, 4, 3), 7, np.uint8)

    def interrupted_bar(results, *args, **kwargs):
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(protect_module, 'ThreadPoolExecutor', Pool)
    monkeypatch.setattr(protect_module, 'tqdm', interrupted_bar)
    with pytest.raises(KeyboardInterrupt):
        protect(grey_images(9, read), tmp_path / 'out', Key(SECRET), Settings(), progress=False)
    assert len(begun) <= 2


@pytest.mark.parametrize('progress', [True, False])
def test_progress_is_shown_on_terminals(tmp_path, monkeypatch, progress):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, 'stderr', terminal)
    protect(grey_images(2), tmp_path / 'out', Key(SECRET), Settings(), progress=progress)
    assert ('protecting: 100%' in terminal.getvalue()) == progress


def test_a_copy_that_is_being_changed_is_not_complete(tmp_path):
    output, key = tmp_path / 'out', Key(SECRET)
    path = protect(grey_images(2), output, key, Settings(), progress=False)

    def read(index: int) -> np.ndarray:
        if index == 1:
            raise CorruptImageError
        return np.arange(48, dtype=np.uint8).reshape(4, 4, 3)

    with pytest.raises(CorruptImageError, match='1 of 2 images'):
        protect(grey_images(2, read), output, key, Settings(), progress=False)
    assert not json.loads(path.read_text())['complete']
    with pytest.raises(ProtectionError, match='is not complete'):
        verify(grey_images(2), output, key, progress=False)
    protect(grey_images(2), output, key, Settings(), progress=False)
    assert len(verify(grey_images(2), output, key, progress=False).matching) == 2


def test_images_outside_of_the_source(tool, photos, tmp_path, key_file):
    source = tmp_path / 'tables'
    source.mkdir()
    inside = shutil.copy(photos / 'cats/000.png', source / 'own.png')
    (source / 'all.csv').write_text(f'image,identity\n{inside},a\n{photos}/cats/001.png,b\n')
    options = ('--dataset', 'CSVReIDDataset', '--dataset-options', 'ann_file=all.csv',
               '--key-file', key_file)  # fmt: skip
    status, text = tool(source, tmp_path / 'out', *options)
    assert status == 0
    where = f'{photos}/cats/001.png'[1:]
    assert f'warning: 1 images lie outside of {source}' in text
    assert f'their whole paths, e.g. {where}; ' in text
    assert {path for path in digests(tmp_path / 'out') if path.endswith('png')} == {
        'own.png', where,
    }  # fmt: skip
    # The path that is written leads to the image, whatever the table's way there.
    (source / 'all.csv').write_text('image,identity\n../photos/cats/001.png,a\n')
    assert tool(source, tmp_path / 'other', *options)[0] == 0
    assert (tmp_path / 'other' / where).exists()
    status, text = tool(source, photos / 'cats/out', *options)
    assert status == 2
    assert f'{photos}/cats, which has originals, lie in one another' in text


def test_names_and_links(tool, tmp_path, key_file):
    photos = write_photos(tmp_path / 'photos', 1, 8)
    (photos / 'dogs/old').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere').mkdir()
    shutil.copy(photos / 'cats/000.png', tmp_path / 'elsewhere/linked.png')
    (tmp_path / 'elsewhere/back').symlink_to(tmp_path / 'elsewhere')
    # A kill while the first manifest was written
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/.conv_unlearnable.json.abc.tmp').write_bytes(b'{')
    command = (photos, tmp_path / 'out', '--key-file', key_file)
    assert tool(*command)[0] == 0
    assert (tmp_path / 'out/dogs/old/linked.png').exists()
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 6  # each once, whatever links lead back
    assert not list((tmp_path / 'out').rglob('*.tmp'))

    shutil.copy(photos / 'cats/000.png', os.fsencode(photos / 'cats') + b'/\xff.png')
    status, text = tool(photos, tmp_path / 'other', '--key-file', key_file)
    assert status == 2
    assert "1 file names are not UTF-8, which the table needs: 'cats/\\udcff.png'" in text
    assert not (tmp_path / 'other').exists()


def test_protects_classification_sets(tool, tmp_path, key_file):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    jpegs = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, 'JPEG')
        jpegs.append(np.frombuffer(buffer.getvalue(), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(images[:2], axis=1)).save(buffer, 'WEBP', lossless=True)
    names = np.array(['cat', 'dog'])
    np.savez(
        tmp_path / 'cifar10.npz', class_names=names, train_labels=np.array([1, 0]),
        train_images_00=np.frombuffer(buffer.getvalue(), np.uint8),
    )  # fmt: skip
    np.savez(
        tmp_path / 'flowers17.npz', class_names=names, labels=np.array([1, 0, 1, 0]),
        split=np.array([0, 0, 1, 1]), jpeg=np.concatenate(jpegs),
        offsets=np.cumsum([0, *map(len, jpegs)]),
    )  # fmt: skip
    filters = class_filters(Key(SECRET).seed, 2, 3, 0.3)
    for kind, files in (
        ('PackedCIFAR', ['dog/000000.png', 'cat/000001.png']),
        ('Flowers17', ['dog/0000.png', 'cat/0001.png']),
    ):
        output = tmp_path / kind
        pack = tmp_path / ('cifar10.npz' if kind == 'PackedCIFAR' else 'flowers17.npz')
        status, _ = tool(pack, output, '--dataset', kind, '--key-file', key_file,
                         '--kernel-size', 3, '--blur', 0.3)  # fmt: skip
        assert status == 0
        with open(output / 'train.csv', newline='') as file:
            rows = list(csv.DictReader(file))
        assert [row['image'] for row in rows] == files
        assert [row['identity'] for row in rows] == ['dog', 'cat']
        for index, (name, label) in enumerate(zip(files, (1, 0))):
            clean = images[index]
            if kind == 'Flowers17':
                clean = np.asarray(Image.open(io.BytesIO(jpegs[index].tobytes())))
            assert np.array_equal(pixels(output / name), convolve_image(clean, filters[label]))
    # The second image, of the first class, alone
    command = (tmp_path / 'cifar10.npz', tmp_path / 'part', '--dataset', 'PackedCIFAR',
               '--dataset-options', 'indices=[1]', '--key-file', key_file)  # fmt: skip
    assert tool(*command)[0] == 0
    manifest = json.loads((tmp_path / 'part/conv_unlearnable.json').read_text())
    assert (manifest['num_images'], manifest['num_classes']) == (1, 2)
    assert '1 images match' in tool(*command, '--verify')[1]
    for indices in ('0', '[]', 'abc', '[1.5]', '[2]'):
        status, text = tool(*command[:5], f'indices={indices}', *command[6:])
        assert status == 2
        assert 'error: PackedCIFAR has no images at indices=' in text


def test_goes_on_after_a_kill(tool, tmp_path, key_file):
    photos = write_photos(tmp_path / 'photos', 20, 100)
    # Large filters, so that there is time for the kill
    options = ('--key-file', key_file, '--kernel-size', 51, '--workers', 1)
    command = [sys.executable, TOOL, photos, tmp_path / 'killed', *options]
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    cats = tmp_path / 'killed/cats'
    while process.poll() is None and not (cats / '002.png').exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(digests(tmp_path / 'killed')) < 44
    times = {path: path.stat().st_mtime_ns for path in cats.glob('0*.png')}
    assert not json.loads((tmp_path / 'killed/conv_unlearnable.json').read_text())['complete']
    (cats / '.015.png.abc.tmp').write_bytes(b'half an image')

    for name in ('killed', 'whole'):
        assert tool(photos, tmp_path / name, *options)[0] == 0
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    assert not list((tmp_path / 'killed').rglob('*.tmp'))
    killed, whole = digests(tmp_path / 'killed'), digests(tmp_path / 'whole')
    assert len(whole) == 45
    # Salts differ.
    assert killed.pop('conv_unlearnable.json') != whole.pop('conv_unlearnable.json')
    assert killed == whole


def test_protects_a_reid_set(tool, market_root, tmp_path, key_file):
    output = tmp_path / 'protected'
    tool(market_root, output, '--dataset', 'Market1501', '--key-file', key_file, '--fraction', 0.5)
    protected = CSVReIDDataset('train.csv', 'train', str(output))
    assert len(protected) == 24
    filters = class_filters(Key(SECRET).seed, 6, 9, 0.06)
    chosen = poison_mask(Key(SECRET).seed, 6, 9, 24, 0.5)
    assert 0 < chosen.sum() < 24
    with open(output / 'train.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        source = market_root / Path(row['image']).with_suffix('.jpg')
        assert row['identity'] == str(int(source.name[:4]))
        assert row['camera'] == str(int(source.name[6]) - 1)
        expected = pixels(source)
        if chosen[index]:
            expected = convolve_image(expected, filters[int(row['identity']) - 1])
        assert np.array_equal(pixels(output / row['image']), expected)
    assert not (output / 'query').exists()


def test_a_synthetic_set_is_read_only(tmp_path):
    settings = dict(num_train_ids=2, num_test_ids=2, num_cameras=2, images_per_camera=2,
                    image_size=(32, 16))  # fmt: skip
    with pytest.raises(FileNotFoundError, match='Draw it first'):
        dataset_images('SyntheticReID', tmp_path, dict(settings=settings))
    assert not list(tmp_path.iterdir())
    drawn = SyntheticReID(str(tmp_path), 'train', settings=settings)
    images, num_classes = dataset_images('SyntheticReID', tmp_path, dict(settings=settings))
    assert num_classes == 2
    assert len(images) == len(drawn)
    assert {image.label for image in images} == {0, 1}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ((), None),
        (('--fraction', 0.9), 'a fraction below 1) there is next to no protection'),
        (('--same-filter',), 'all classes have the same filter, which protects nothing'),
        (('--blur', 0, '--kernel-size', 3), 'the 10 classes have but 7 different filters'),
    ],
)
def test_what_protects_nothing_comes_with_a_warning(tool, tmp_path, monkeypatch, options, message):
    monkeypatch.setenv('SOME_KEY', 'seed:0')
    for name in range(10):
        (tmp_path / f'photos/{name}').mkdir(parents=True)
        Image.new('RGB', (4, 4), 'red').save(tmp_path / f'photos/{name}/0.png')
    command = (tmp_path / 'photos', tmp_path / 'out', '--key-variable', 'SOME_KEY', *options)
    status, text = tool(*command)
    assert status == 0
    warnings = [line for line in text.splitlines() if line.startswith('warning: ')]
    assert len(warnings) == 1 + (message is not None)
    assert message is None or message in warnings[-1]


def test_one_class_alone_is_not_protected():
    for num_classes in (None, 3):  # of the whole dataset, of which these are a part
        assert weaknesses(grey_images(2), Key(SECRET), Settings(), num_classes) == [
            'all classes have the same filter, which protects nothing'
        ]


def test_files_that_are_no_images_are_named(tool, photos, tmp_path, key_file):
    (photos / 'cats/gone.png').symlink_to(tmp_path / 'nowhere.png')
    command = (photos, tmp_path / 'out', '--key-file', key_file)
    status, text = tool(*command)
    assert status == 0
    (line,) = [line for line in text.splitlines() if 'left out' in line]
    assert 'warning: 3 files left out' in line
    assert 'cats/gone.png' in line
    (tmp_path / 'out/cats/gone').symlink_to(tmp_path / 'nowhere')
    status, text = tool(*command, '--verify')
    assert status == 2
    assert '1 files are not part of it: cats/gone' in text


@pytest.mark.parametrize('place', ['photos/dogs/young', 'out'])
def test_folders_without_permission(tool, photos, tmp_path, key_file, monkeypatch, place):
    """A folder that can't be read has images that would stay unprotected."""
    closed, scandir, mkdir = tmp_path / place, os.scandir, Path.mkdir

    def refuse(function):
        def call(path, *args, **kwargs):
            if Path(path) == closed:
                raise PermissionError(errno.EACCES, 'Permission denied', str(path))
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(os, 'scandir', refuse(scandir))
    monkeypatch.setattr(Path, 'mkdir', refuse(mkdir))
    status, text = tool(photos, tmp_path / 'out', '--key-file', key_file)
    assert status == 2
    assert text.strip().splitlines()[-1] == f"error: [Errno 13] Permission denied: '{closed}'"
    assert not (tmp_path / 'out').exists()


def test_two_calls_do_not_write_to_one_folder(tmp_path):
    output, key = tmp_path / 'out', Key(SECRET)
    begun, go_on = threading.Event(), threading.Event()

    def read(index: int) -> np.ndarray:
        begun.set()
        assert go_on.wait(30)
        return np.full((4, 4, 3), index, np.uint8)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(protect, grey_images(2, read), output, key, Settings(), progress=False)
        assert begun.wait(30)
        (output / 'a').mkdir()
        (output / 'a/.0.png.abc.tmp').write_bytes(b'half')
        with pytest.raises(ProtectionError, match='Another process is writing to .*out; wait'):
            protect(grey_images(2), output, key, Settings(), progress=False)
        assert (output / 'a/.0.png.abc.tmp').exists()
        go_on.set()
        first.result()
    protect(grey_images(2, read), output, key, Settings(), progress=False)
    assert len(verify(grey_images(2, read), output, key, progress=False).matching) == 2
    assert not list(output.rglob('*.tmp'))


def test_folders_that_can_not_be_locked(tmp_path, monkeypatch):
    """As on some network file systems"""

    def fail(*args):
        raise OSError(errno.EBADF, 'Bad file descriptor')

    monkeypatch.setattr(protect_module.fcntl, 'flock', fail)
    protect(grey_images(1), tmp_path / 'out', Key(SECRET), Settings(), progress=False)
    assert (tmp_path / 'out/a/0.png').exists()


def test_verify_finds_entries_of_no_image(tmp_path):
    output, key = tmp_path / 'out', Key(SECRET)
    path = protect(grey_images(2), output, key, Settings(), progress=False)
    manifest = json.loads(path.read_text())
    first = manifest['files'][0]
    for extra in (first | dict(file='a/2.png'), first):
        path.write_text(json.dumps(manifest | dict(files=[*manifest['files'], extra])))
        found = verify(grey_images(2), output, key, progress=False)
        assert found.different == [path.name]
        assert len(found.matching) == 2


def test_jpeg_comes_with_a_warning(tool, photos, tmp_path, monkeypatch):
    monkeypatch.setenv('SOME_KEY', 'seed:3')
    command = (photos, tmp_path / 'out', '--key-variable', 'SOME_KEY')
    _, text = tool(*command, '--format', 'jpeg')
    assert 'warning: jpeg changes pixels after filtering' in text
    assert 'warning: the key is a 32-bit seed' in text
    assert (tmp_path / 'out/cats/grey.jpg').exists()
    assert '11 images match' in tool(*command, '--verify')[1]


@pytest.fixture(scope='module')
def places(tmp_path_factory) -> dict[str, Path]:
    """Folders and keys that the tool takes or refuses, and one finished output."""
    root = tmp_path_factory.mktemp('places')
    photos = write_photos(root / 'photos')
    (root / 'full').mkdir()
    (root / 'full/mine.txt').write_text('x')
    (root / 'empty/nothing').mkdir(parents=True)
    for name, text in (('good', SECRET), ('other', SECRET[::-1]), ('short', 'hunter2')):
        (root / f'{name}.key').write_text(text)
    shutil.copytree(photos, root / 'grown')
    (root / 'grown/birds').mkdir()
    shutil.copy(photos / 'cats/000.png', root / 'grown/birds')
    shutil.copytree(photos, root / 'twins')
    shutil.copy(photos / 'cats/grey.bmp', root / 'twins/cats/000.bmp')
    images, _ = class_folder_images(photos)
    manifest = protect(images, root / 'done', Key(SECRET), Settings(), progress=False)
    for name in ('cats/000.png', 'train.csv', 'dogs/young'):
        output = shutil.copytree(root / 'done', root / f'changed-{Path(name).stem}')
        if name == 'dogs/young':
            shutil.rmtree(output / name)
            (output / name).write_text('x')
        else:
            (output / name).unlink()
            (output / name).mkdir()
    (root / 'links/birds').mkdir(parents=True)
    shutil.copy(photos / 'cats/000.png', root / 'links/birds')
    (root / 'links/dogs').symlink_to(photos / 'dogs')
    (root / 'filelinks/cats').mkdir(parents=True)
    (root / 'filelinks/cats/1.png').symlink_to(photos / 'cats/000.png')
    (root / 'begun').mkdir()
    begun = json.loads(manifest.read_text()) | dict(complete=False, files=[])
    (root / 'begun' / manifest.name).write_text(json.dumps(begun))
    return root


@pytest.mark.parametrize(
    ('source', 'output', 'options', 'message'),
    [
        ('photos', 'x', '', 'environment variable VITDOWN_UNLEARNABLE_KEY is not set'),
        ('photos', 'x', '--key-file short.key', 'too short: 7 characters'),
        ('photos', 'x', '--key-file no.key', 'Cannot read the key file'),
        ('photos', 'photos/x', '--key-file good.key', 'lie in one another'),
        ('photos', '.', '--key-file good.key', 'lie in one another'),
        ('photos', 'full', '--key-file full/mine.txt', 'which is to be published'),
        ('photos', 'full', '--key-file ~/full/mine.txt', 'which is to be published'),
        ('photos', 'x', '--key-variable=', 'that was named is not set'),
        ('links', 'photos/dogs/x', '--key-file good.key', 'which has originals, lie in one'),
        ('links', 'photos', '--key-file good.key', 'which has originals, lie in one another'),
        ('filelinks', 'photos/cats/x', '--key-file good.key', 'which has originals, lie in one'),
        ('filelinks', 'photos', '--key-file good.key', 'which has originals, lie in one another'),
        *(
            ('photos', f'changed-{name}', '--key-file good.key', 'Remove them')
            for name in ('000', 'train', 'young')
        ),
        ('no', 'x', '--key-file good.key', 'does not exist'),
        ('photos/notes.txt', 'x', '--key-file good.key', 'is no folder'),
        ('photos', 'full', '--key-file good.key', 'is not empty and holds no conv_unlearnable'),
        ('photos', 'full', '--key-file good.key --verify', 'it is no output of this tool'),
        ('photos', 'full/mine.txt', '--key-file good.key', 'is a file; name a folder'),
        ('photos', 'done', '--key-file other.key', 'made with another key'),
        ('photos', 'done', '--key-file good.key --blur 0.1', 'blur_parameter 0.06 instead of 0.1'),
        ('grown', 'done', '--key-file good.key', '11 images of 2 classes then, 12 of 3 now'),
        ('twins', 'x', '--key-file good.key', 'would become the same file'),
        ('photos', 'x', '--key-file good.key --kernel-size 4', 'must be odd and positive, got 4'),
        ('photos', 'x', '--key-file good.key --kernel-size 1', 'kernel_size 1 protects nothing'),
        (
            'photos',
            'x',
            '--key-file good.key --blur nan',
            'must be finite in float32 and not negative, got nan',
        ),
        ('photos', 'done', '--key-file good.key --verify --blur inf', 'not negative, got inf'),
        ('photos', 'x', '--key-file good.key --fraction 2', 'must be 0 to 1, got 2.0'),
        ('empty', 'x', '--key-file good.key', 'has no images'),
        ('photos/dogs/young', 'x', '--key-file good.key', 'has no class folders'),
        ('photos', 'x', '--key-file good.key --dataset Zoo', "no dataset type 'Zoo'"),
        ('photos', 'x', '--key-file good.key --dataset-options a=1', 'name its type'),
        *(
            (
                'photos',
                'x',
                f'--key-file good.key --dataset {kind} --dataset-options {option}=1 a=1',
                f'dataset option(s) {option} cannot be chosen',
            )
            for kind, option in (
                ('Omniglot', 'subset'),
                ('PackedCIFAR', 'split'),
                ('Omniglot', 'type'),
                ('PackedCIFAR', 'data_root'),
                ('Market1501', 'pipeline'),
                ('SyntheticReID', 'draw'),
                *(
                    ('PackedCIFAR', option)
                    for option in ('metainfo', 'classes', 'data_prefix', 'test_mode', 'filter_cfg')
                ),
            )
        ),
        ('photos', 'x', '--key-file good.key --dataset SyntheticReID', 'Draw it first with'),
        ('photos', 'done', '--key-file good.key --dataset SyntheticReID --verify', 'Draw it first'),
        ('photos', 'x', '--key-file good.key --workers 0', '--workers must be at least 1, got 0'),
        ('photos', 'x', '--key-file good.key --format jpeg --fraction 0.5', 'stay unprotected'),
        ('photos', 'done', '--key-file good.key --verify --blur 0.1', '0.06 instead of 0.1'),
        ('photos', 'done', '--key-file good.key --verify --same-filter', 'False instead of True'),
        ('photos', 'begun', '--key-file good.key --verify', 'is not complete'),
        ('photos', 'x', '--key-variable hunter2hunter2hunter2', 'that was named is not set'),
        ('photos', 'x', '--key-file hunter2hunter2hunter2', 'not repeated here'),
    ],
)
def test_refuses_what_it_can_not_do(tool, places, monkeypatch, source, output, options, message):
    monkeypatch.chdir(places)
    monkeypatch.setenv('HOME', str(places))
    before = digests(places)
    status, text = tool(source, output, *options.split())
    assert status == 2
    error = text.strip().splitlines()[-1]
    assert error.startswith('error: ')
    assert message in error
    assert 'hunter2' not in text
    assert digests(places) == before


def test_images_that_can_not_be_decoded(tool, photos, tmp_path, key_file):
    whole = (photos / 'cats/001.png').read_bytes()
    (photos / 'cats/001.png').write_bytes(whole[:100])
    command = (photos, tmp_path / 'out', '--key-file', key_file)
    status, text = tool(*command)
    assert status == 2
    assert '1 of 11 images cannot be decoded: cats/001.png. The others are written' in text
    (photos / 'cats/001.png').write_bytes(whole)
    assert tool(*command)[0] == 0
    assert '11 images match' in tool(*command, '--verify')[1]


def test_key_is_in_no_output_of_a_training(tiny_config, tmp_path, key_file):
    """Config dumps, logs, checkpoints and what the tool prints know nothing of the key."""
    config = tmp_path / 'protected.py'
    config.write_text(
        f"_base_ = '{tiny_config}'\n"
        'train_pipeline = [\n'
        "    dict(type='LoadReIDImage'),\n"
        "    dict(type='ConvUnlearnable', num_classes=6, kernel_size=9, blur_parameter=0.06),\n"
        "    dict(type='Resize', scale=(16, 32)),\n"
        "    dict(type='PackReIDInputs'),\n"
        ']\n'
        'train_dataloader = dict(dataset=dict(pipeline=train_pipeline))\n'
        "custom_hooks = [dict(type='PGDTrainingHook', steps=1)]\n"
    )
    work_dir = tmp_path / 'work'
    result = run_tool(
        'tools/train.py', config, '--work-dir', work_dir, '--cfg-options',
        'train_cfg.max_epochs=2', env={'VITDOWN_UNLEARNABLE_KEY': SECRET},
    )  # fmt: skip
    assert (work_dir / 'epoch_2.pth').exists()
    assert 'ConvUnlearnable' in (work_dir / 'protected.py').read_text()
    assert_no_secret(work_dir, text=result.stdout + result.stderr)

    failed = run_tool('tools/train.py', config, '--work-dir', work_dir, check=False)
    assert 'VITDOWN_UNLEARNABLE_KEY is not set' in failed.stderr


@pytest.fixture
def protected_config(tiny_config, tmp_path):
    """Write a config whose train and test pipelines have a transform with an argument."""

    def write(argument: str, kind: str = 'ConvUnlearnable') -> Path:
        config = tmp_path / 'protected.py'
        config.write_text(
            f"_base_ = '{tiny_config}'\n"
            f"transform = dict(type='{kind}', num_classes=6, {argument}='{SECRET}')\n"
            'train_dataloader = dict(dataset=dict(pipeline=[transform]))\n'
            'test_dataloader = dict(dataset=dict(pipeline=[transform]))\n'
        )
        return config

    return write


@pytest.mark.parametrize('script', ['train', 'test', 'analysis_tools/print_config'])
@pytest.mark.parametrize(
    ('option', 'kind', 'message'),
    [
        ('key_file', 'ConvUnlearnable', 'Cannot read the key file'),
        ('key_variable', 'vitdown.ConvUnlearnable', 'that was named is not set'),
        (
            'key_file',
            'vitdown.datasets.transforms.conv_unlearnable.ConvUnlearnable',
            'Cannot read the key file',
        ),
        ('key', 'ConvUnlearnable', 'ConvUnlearnable has no argument key; it has num_classes, '),
        ('key', 'convunlearnable', 'ConvUnlearnable has no argument key; it has num_classes, '),
        ('seed', 'vitdown.datasets.transforms.ConvUnlearnable', 'has no argument seed; it has'),
    ],
)
def test_a_key_in_a_config_is_not_written_on(
    protected_config, tiny_checkpoint, tmp_path, monkeypatch, capsys, script, option, kind, message
):
    """Who takes an option for the key itself finds it in no log, dump or message."""
    work_dir = tmp_path / 'work'
    command = [script, protected_config(option, kind), '--work-dir', work_dir]
    if script == 'test':
        command.insert(2, tiny_checkpoint)
    monkeypatch.setattr(sys, 'argv', [str(part) for part in command])
    with pytest.raises(SystemExit, match='2'):
        runpy.run_path(str(ROOT / f'tools/{script}.py'), run_name='__main__')
    text = ''.join(capsys.readouterr())
    assert message in text
    assert SECRET not in text
    assert not work_dir.exists()


def test_keys_are_looked_for_in_all_that_is_built_or_written(protected_config, tmp_path):
    """Wherever the transform stands; reading a config needs no key, only using it does."""
    key = tmp_path / 'key'
    key.write_text(SECRET)
    wrong = dict(type='ConvUnlearnable', key_file=SECRET)
    for part in ([wrong], (wrong,), dict(a=[(wrong,)]), dict(type='Outer', transforms=[wrong])):
        with pytest.raises(KeyUnavailableError, match='Cannot read the key file'):
            check_key_sources(part)
    check_key_sources([dict(type='ConvUnlearnable', key_file=str(key)), dict(type='x', key=1), 1])
    cfg = load_config(str(protected_config('key_file')), work_dir=str(tmp_path / 'work'))
    for start in (build_runner, evaluate):
        with pytest.raises(KeyUnavailableError, match='Cannot read the key file'):
            start(cfg)
    assert not (tmp_path / 'work').exists()
    with pytest.raises(KeyUnavailableError, match='no argument key'):
        load_config(str(protected_config('key')))
    for place in ('train_dataloader', 'train_dataloader.dataset'):
        with pytest.raises(KeyUnavailableError, match='key, nor has what it is part of') as error:
            load_config(str(protected_config('key_file')), {f'{place}.key': SECRET})
        assert SECRET not in str(error.value)


def test_a_trained_model_is_tested_without_the_key_of_its_training(
    protected_config, tiny_config, tiny_checkpoint, tmp_path
):
    """Where the key's file is not at hand, as the message says."""
    config = protected_config('key_file')
    config.write_text(config.read_text().split('test_dataloader')[0])
    cfg = load_config(str(config), work_dir=str(tmp_path / 'work'))
    with pytest.raises(KeyUnavailableError, match='set key_file to None wherever'):
        evaluate(cfg, str(tiny_checkpoint))
    places = ('transform', 'train_dataloader.dataset.pipeline.0')
    options = {f'{place}.key_file': None for place in places}
    cfg = load_config(str(config), options, str(tmp_path / 'work'))
    assert 'reid/mAP' in evaluate(cfg, str(tiny_checkpoint))


VARIABLE = 'VITDOWN_UNLEARNABLE_KEY'


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('quoted.py', "t = dict(type='ConvUnlearnable', key='{{$VARIABLE:}}')", 'refers to'),
        ('other.py', "t = dict(type='ConvUnlearnable', key_file='{{ $VARIABLE:x}}')", 'refers to'),
        ('bare.py', "a = {{'$VARIABLE:'}}", 'refers to'),
        ('environ.py', "import os\na = os.environ['VARIABLE']", 'refers to'),
        ('snippet.yaml', 'a: {{$VARIABLE:}}: b', 'refers to'),
        ('child.py', "_base_ = 'quoted.py'", 'refers to'),
        ('mine.py', "t = dict(type='ConvUnlearnable', key='{{$MINE:}}')", 'no argument key'),
        ('mine_bare.py', "t = dict(type='ConvUnlearnable', key={{'$MINE:'}})",
         'cannot be read with MINE of the environment filled in: NameError'),
        ('mine_base.py', "_base_ = '{{$MINE:}}'", 'filled in: FileNotFoundError'),
        ('mine.yaml', 'a: {{$MINE:}}: b', 'filled in: ScannerError'),
    ],
)  # fmt: skip
def test_keys_of_the_environment_get_into_no_config(
    tmp_path, monkeypatch, capsys, name, text, message
):
    """Not through MMEngine's variables in configs either, whose values it logs."""
    quoted = "key_file = '{{$VARIABLE:}}'"
    for file, content in (('quoted.py', quoted), (name, text)):
        (tmp_path / file).write_text(content.replace('VARIABLE', VARIABLE) + '\n')
    for variable in (VARIABLE, 'MINE'):
        monkeypatch.setenv(variable, SECRET)
    for script in ('train', 'analysis_tools/print_config'):
        monkeypatch.setattr(sys, 'argv', [script, str(tmp_path / name)])
        with pytest.raises(SystemExit, match='2'):
            runpy.run_path(str(ROOT / f'tools/{script}.py'), run_name='__main__')
        shown = ''.join(capsys.readouterr())
        assert message in shown
        assert not any(word in shown for word in SECRET.split('-'))
    with pytest.raises(ValueError, match='.') as caught:
        load_config(str(tmp_path / name))
    traces = ''.join(traceback.format_exception(caught.value))
    assert not any(word in traces for word in SECRET.split('-'))
    assert os.environ[VARIABLE] == SECRET


def test_values_of_the_environment_are_not_logged(tiny_config, tmp_path, monkeypatch, capsys):
    """Other variables fill in configs as before, and the key is there again."""
    config = tmp_path / 'named.py'
    config.write_text(f"_base_ = '{tiny_config}'\nwork_dir = '{{{{$MINE:x}}}}'\n")
    monkeypatch.setenv('MINE', SECRET)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert load_config(str(config)).work_dir == SECRET
    assert SECRET not in ''.join(capsys.readouterr())
    assert VARIABLE not in os.environ
    with pytest.raises(FileNotFoundError, match='Checkpoint no.pth'):
        build_teacher(str(config), 'no.pth')
    assert SECRET not in ''.join(capsys.readouterr())
