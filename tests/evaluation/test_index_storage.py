"""Saved galleries: complete, checked, mapped, and never torn by a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vitdown.evaluation.index import GalleryFileError, GalleryIndex

from .test_index import DIM, FACTORIES, columns, filled, vectors

WRITER = """
import sys
import numpy as np
from vitdown.evaluation.index import GalleryIndex
gallery = GalleryIndex(16)
print('ready', flush=True)
while True:
    gallery.add(np.full((500, 16), len(gallery) + 1, dtype=np.float32), metadata={
        'number': np.full(500, len(gallery))})
    gallery.save(sys.argv[1])
"""


@pytest.mark.parametrize('mmap', [False, True], ids=['read', 'mapped'])
@pytest.mark.parametrize('factory', FACTORIES)
def test_a_loaded_gallery_finds_the_same(tmp_path, factory, mmap):
    gallery = filled(factory, 'euclidean')
    gallery.remove([50])
    gallery.save(tmp_path / 'gallery')
    loaded = GalleryIndex.load(tmp_path / 'gallery', mmap=mmap)
    assert repr(loaded) == repr(gallery)
    for where in (None, {'site': 'north', 'time': np.array([], 'datetime64[s]')}, {'camera': 2}):
        ours, theirs = (g.search(vectors(4, seed=1), 6, where) for g in (gallery, loaded))
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-6)
        np.testing.assert_array_equal(ours.metadata['time'], theirs.metadata['time'])


def test_a_loaded_gallery_grows_on_and_replaces_the_saved_one(tmp_path):
    filled(count=20).save(tmp_path)
    gallery = GalleryIndex.load(tmp_path)
    np.testing.assert_array_equal(gallery.add(vectors(2, 5), metadata=columns(2)), [191, 192])
    gallery.remove([0])
    gallery.save(tmp_path)
    assert len(GalleryIndex.load(tmp_path)) == 21
    assert len(list(tmp_path.glob('*.faiss'))) == 1


def test_a_mapped_gallery_is_read_only(tmp_path):
    filled(count=20).save(tmp_path)
    gallery = GalleryIndex.load(tmp_path, mmap=True)
    for change in (
        lambda: gallery.add(vectors(1), metadata=columns(1)),
        lambda: gallery.remove([0]),
        lambda: gallery.save(tmp_path),
        gallery.compact,
    ):
        with pytest.raises(RuntimeError, match='read-only'):
            change()


def test_a_kill_at_any_moment_leaves_a_whole_gallery(tmp_path):
    path = tmp_path / 'gallery'
    for delay in (0.0, 0.007, 0.019):
        process = subprocess.Popen(
            [sys.executable, '-c', WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline().strip() == 'ready'
        while not (path / 'manifest.json').exists():
            assert process.poll() is None
        moment = time.perf_counter() + delay
        while time.perf_counter() < moment:
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        gallery = GalleryIndex.load(path)
        assert len(gallery) % 500 == 0
        np.testing.assert_array_equal(gallery.metadata['number'], gallery.ids // 500 * 500)
    GalleryIndex.load(path).save(path)
    left = sorted(file.suffix for file in path.iterdir())
    assert left == ['.faiss', '.json', '.npy', '.npy', '.npy']


def test_torn_and_damaged_files_are_detected(tmp_path):
    filled('IVF4,Flat').save(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        content = file.read_bytes()
        for mmap in (False, True):
            file.write_bytes(content[: len(content) // 2])
            with pytest.raises(GalleryFileError, match=f'{file.name} is (torn|damaged)'):
                GalleryIndex.load(tmp_path, mmap=mmap)
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        with pytest.raises(GalleryFileError, match=f'{file.name} is damaged'):
            GalleryIndex.load(tmp_path)
        file.unlink()
        with pytest.raises((GalleryFileError, FileNotFoundError), match=r'missing|no manifest'):
            GalleryIndex.load(tmp_path)
        file.write_bytes(content)
    assert len(GalleryIndex.load(tmp_path)) == 300


def test_parts_of_two_saves_do_not_mix(tmp_path):
    filled(count=20).save(tmp_path / 'a')
    filled(count=20).save(tmp_path / 'b')
    manifest = json.loads((tmp_path / 'a/manifest.json').read_text())
    manifest['settings']['dim'] = DIM + 1
    (tmp_path / 'a/manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(GalleryFileError, match='is damaged'):
        GalleryIndex.load(tmp_path / 'a')
    (tmp_path / 'a/manifest.json').write_bytes((tmp_path / 'b/manifest.json').read_bytes())
    with pytest.raises(GalleryFileError, match='is missing'):
        GalleryIndex.load(tmp_path / 'a')


def test_other_directories_are_left_alone(tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(b'')
    with pytest.raises(FileExistsError, match='is not a gallery'):
        filled(count=20).save(tmp_path)
    with pytest.raises(FileNotFoundError, match='holds no gallery'):
        GalleryIndex.load(tmp_path)


def test_the_name_of_the_model_is_kept(tmp_path):
    gallery = GalleryIndex(4, model='abc')
    gallery.add(np.eye(4, dtype=np.float32))
    gallery.save(tmp_path / 'gallery')
    assert GalleryIndex.load(tmp_path / 'gallery').model == 'abc'


@pytest.mark.parametrize('files', [{'manifest.json': '{"name": "app"}'}, {}], ids=['app', 'parts'])
def test_folders_that_look_alike_are_left_alone(tmp_path, files):
    files = {**files, 'part-00000.csv': 'rows'}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(FileExistsError, match='is not a gallery'):
        filled(count=20).save(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == files


def test_parts_are_on_the_disk_before_the_manifest_names_them(tmp_path, monkeypatch):
    """What a power failure finds: only whole things are renamed into place."""
    steps, names = [], {}
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        steps.append(('fsync', os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def spy_replace(source, target):
        names[os.stat(source).st_ino] = os.path.basename(target)
        steps.append(('replace', os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', spy_fsync)
    monkeypatch.setattr(os, 'replace', spy_replace)
    filled(count=20).save(tmp_path / 'gallery')
    (renamed,) = [inode for kind, inode in steps if kind == 'replace']
    assert names[renamed] == 'manifest.json'
    at = steps.index(('replace', renamed))
    synced = {inode for kind, inode in steps[:at] if kind == 'fsync'}
    files = {file.stat().st_ino for file in (tmp_path / 'gallery').iterdir()}
    folder = (tmp_path / 'gallery').stat().st_ino
    assert files | {folder} <= synced
    # The new entry of the folder, too.
    assert ('fsync', folder) in steps[at:]


def test_a_reader_beside_a_writer_reads_the_new_gallery(tmp_path, monkeypatch):
    from vitdown.evaluation.index import storage

    filled(count=20).save(tmp_path)
    load_parts = storage._load_parts

    def replaced_meanwhile(path, manifest, mmap):
        monkeypatch.setattr(storage, '_load_parts', load_parts)
        filled(count=30).save(tmp_path)
        return load_parts(path, manifest, mmap)

    monkeypatch.setattr(storage, '_load_parts', replaced_meanwhile)
    assert len(GalleryIndex.load(tmp_path)) == 30


def test_damaged_headers_of_mapped_arrays_are_named(tmp_path):
    filled(count=20).save(tmp_path)
    for file in tmp_path.glob('*.npy'):
        content = file.read_bytes()
        file.write_bytes(b'\0' * 40 + content[40:])
        with pytest.raises(GalleryFileError, match=f'{file.name} is damaged'):
            GalleryIndex.load(tmp_path, mmap=True)
        file.write_bytes(content)
