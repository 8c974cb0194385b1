import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from vitdown.datasets import Market1501, SyntheticReID
from vitdown.datasets.synthetic import SyntheticSettings, generate_synthetic_reid
from vitdown.datasets.synthetic import generate as module

TINY = dict(
    num_train_ids=3, num_test_ids=2, num_cameras=2, images_per_camera=2, image_size=(32, 16)
)


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


@pytest.mark.parametrize('kind', ['person', 'vehicle'])
def test_same_settings_same_bytes(tmp_path, kind):
    settings = SyntheticSettings(**TINY, kind=kind)
    first = digest(generate_synthetic_reid(tmp_path / 'a', settings))
    assert first == digest(generate_synthetic_reid(tmp_path / 'b', settings))
    other = digest(
        generate_synthetic_reid(tmp_path / 'c', SyntheticSettings(**TINY, kind=kind, seed=1))
    )
    assert first.keys() == other.keys()
    pictures = [name for name in first if name.endswith('.jpg')]
    assert all(first[name] != other[name] for name in pictures)


def test_read_by_the_real_dataset_class(tmp_path):
    root = generate_synthetic_reid(tmp_path / 'set', SyntheticSettings(**TINY))
    train = Market1501(str(root), 'train')
    test = Market1501(str(root), 'test')
    train.full_init()
    assert train.statistics()['train'] == dict(identities=3, images=12, cameras=2)
    assert test.statistics()['query'] == dict(identities=2, images=4, cameras=2)
    assert test.statistics()['gallery']['identities'] == 3, 'two identities and the distractors'
    names = [path.name for path in (root / 'bounding_box_test').iterdir()]
    assert any(name.startswith('-1_') for name in names), 'junk'
    assert any(name.startswith('0000_') for name in names), 'distractors'
    train_ids = {train.annotation(i)['identity'] for i in range(len(train))}
    test_ids = {test.annotation(i)['identity'] for i in range(len(test))}
    assert not train_ids & test_ids
    path = train.annotation(0)['img_path']
    with Image.open(path) as image:
        assert (image.format, image.size) == ('JPEG', (16, 32))


def test_every_query_has_a_match_under_another_camera(tmp_path):
    dataset = SyntheticReID(str(tmp_path), 'test', settings=TINY)
    samples = [dataset.annotation(i) for i in range(len(dataset))]
    for query in (s for s in samples if s['subset'] == 'query'):
        assert any(
            s['subset'] == 'gallery'
            and s['identity'] == query['identity']
            and s['camera_id'] != query['camera_id']
            for s in samples
        )


def test_drawn_once(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='does not exist.*make_synthetic_reid.py'):
        SyntheticReID(str(tmp_path), 'train', settings=TINY, draw=False)
    assert not list(tmp_path.iterdir())
    SyntheticReID(str(tmp_path), 'train', settings=TINY)
    SyntheticReID(str(tmp_path), 'train', settings=TINY, draw=False)
    monkeypatch.setattr(module, '_write_images', None)
    SyntheticReID(str(tmp_path), 'test', settings=TINY)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_settings_get_a_folder_of_their_own(tmp_path):
    for seed in (0, 1):
        SyntheticReID(str(tmp_path), 'train', settings=dict(TINY, seed=seed))
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_run_leaves_no_set(tmp_path, monkeypatch):
    def broken(settings, identities, cameras):
        yield 'query/0001_c1s1_000001_01.jpg', b'x'
        raise KeyboardInterrupt

    root, settings = tmp_path / 'set', SyntheticSettings(**TINY)
    with monkeypatch.context() as patch:
        patch.setattr(module, '_images', broken)
        with pytest.raises(KeyboardInterrupt):
            generate_synthetic_reid(root, settings)
    assert not root.exists()
    assert (generate_synthetic_reid(root, settings) / 'manifest.json').exists()


def test_a_killed_run_leaves_no_set(tmp_path, monkeypatch):
    def killed(settings, identities, cameras):
        yield 'query/0001_c1s1_000001_01.jpg', b'x'
        os.kill(os.getpid(), signal.SIGKILL)

    root, settings = tmp_path / 'set', SyntheticSettings(**TINY)
    with monkeypatch.context() as patch:
        patch.setattr(module, '_images', killed)
        process = multiprocessing.get_context('fork').Process(
            target=generate_synthetic_reid, args=(root, settings)
        )
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not root.exists()
    complete = digest(generate_synthetic_reid(root, settings))
    assert complete == digest(generate_synthetic_reid(tmp_path / 'other', settings))


@pytest.mark.parametrize('num_test_ids', [2, 6])
def test_the_progress_bar_ends_at_its_total(tmp_path, monkeypatch, num_test_ids):
    bars = []
    monkeypatch.setattr(module, 'tqdm', lambda **kwargs: bars.append(tqdm(**kwargs)) or bars[0])
    settings = SyntheticSettings(**{**TINY, 'num_test_ids': num_test_ids})
    root = generate_synthetic_reid(tmp_path / 'set', settings)
    assert bars[0].total == len(list(root.rglob('*.jpg')))


def test_foreign_folders_are_not_touched(tmp_path):
    settings = SyntheticSettings(**TINY)
    (tmp_path / 'photos').mkdir()
    with pytest.raises(ValueError, match='photos is no synthetic re-ID set'):
        generate_synthetic_reid(tmp_path / 'photos', settings)
    root = generate_synthetic_reid(tmp_path / 'set', settings)
    with pytest.raises(ValueError, match='other settings .seed=0 instead of 5'):
        generate_synthetic_reid(root, SyntheticSettings(**TINY, seed=5))
    assert json.loads((root / 'manifest.json').read_text())['seed'] == 0


def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context('fork')
    processes = [
        context.Process(
            target=generate_synthetic_reid, args=(tmp_path / 'set', SyntheticSettings(**TINY))
        )
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(kind='animal'), "one of .'person', 'vehicle'., got 'animal'"),
        (dict(num_cameras=1), 'num_cameras must be 2 to 9'),
        (dict(image_size=(8, 8)), 'at least 16 pixels'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SyntheticSettings(**settings)


def test_pixels_alone_do_not_solve_it(tmp_path):
    """Nearest neighbours by pixels rank little better than chance: the cue is in small parts."""
    from vitdown.evaluation.functional import evaluate_ranking

    settings = dict(num_train_ids=1, num_test_ids=12, image_size=(64, 32))
    dataset = SyntheticReID(str(tmp_path), 'test', settings=settings)
    parts = {'query': ([], [], []), 'gallery': ([], [], [])}
    for i in range(len(dataset)):
        sample = dataset.annotation(i)
        with Image.open(sample['img_path']) as image:
            pixels = np.asarray(image, dtype=np.float32).ravel() / 255
        for values, value in zip(
            parts[sample['subset']], (pixels, sample['identity'], sample['camera_id'])
        ):
            values.append(value)
    (qf, qi, qc), (gf, gi, gc) = parts['query'], parts['gallery']
    scores = evaluate_ranking(np.stack(qf), np.stack(gf), qi, gi, qc, gc)
    assert 0.05 < scores['mAP'] < 0.3
