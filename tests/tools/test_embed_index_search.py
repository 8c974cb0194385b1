"""tools/embed.py, index.py and search.py as a user runs them, one after the other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import run_tool


@pytest.fixture(scope='module')
def photos(market_root) -> Path:
    return market_root / 'bounding_box_test'


@pytest.fixture(scope='module')
def features(tmp_path_factory, photos, tiny_config, tiny_checkpoint) -> Path:
    """Features of the photos, with the camera and the day of each."""
    folder = tmp_path_factory.mktemp('features')
    rows = [f'{p},{p.name[6]},2024-05-0{p.name[6]}' for p in photos.iterdir()]
    (folder / 'table.csv').write_text('\n'.join(['path,camera,day', *rows]))
    output = run_tool(
        'tools/embed.py', tiny_config, tiny_checkpoint, photos, '--out', folder / 'photos.npz',
        '--metadata', folder / 'table.csv', '--device', 'cpu',
    ).stdout  # fmt: skip
    assert '25 features of 24 dimensions' in output
    return folder / 'photos.npz'


@pytest.mark.parametrize('kind', ['folder', 'qdrant'])
def test_from_images_to_matches(kind, tmp_path, photos, features, tiny_config, tiny_checkpoint):
    gallery = tmp_path / 'gallery' if kind == 'folder' else f'qdrant:{tmp_path}/people'
    output = run_tool('tools/index.py', gallery, features).stdout
    assert '25 images, 24 dimensions, cosine' in output
    assert 'camera (int64), day' in output
    query = photos / '0100_c2s1_000001_00.jpg'
    output = run_tool(
        'tools/search.py', tiny_config, tiny_checkpoint, gallery, query, '-k', '3',
        '--where', 'camera=2,3', 'day=..2024-05-02', '--out', tmp_path / 'matches.jsonl',
        '--show-dir', tmp_path / 'lists',
    ).stdout  # fmt: skip
    assert 'matches of 1 queries' in output
    record = json.loads((tmp_path / 'matches.jsonl').read_text())
    assert record['query'] == record['matches'][0]['path'] == str(query)
    assert {match['camera'] for match in record['matches']} == {2}
    assert len(list((tmp_path / 'lists').glob('*.png'))) == 1


def test_galleries_grow_by_files_of_the_same_model(tmp_path, features):
    gallery = tmp_path / 'gallery'
    run_tool('tools/index.py', gallery, features, '--factory', 'HNSW8')
    again = run_tool('tools/index.py', gallery, features, check=False)
    assert (again.returncode, 'holds a gallery already' in again.stderr) == (2, True)
    assert '50 images' in run_tool('tools/index.py', gallery, features, '--append').stdout
    with np.load(features) as arrays:
        np.savez(tmp_path / 'other.npz', **{**arrays, 'model': np.array('0123456789abcdef')})
    other = run_tool('tools/index.py', gallery, tmp_path / 'other.npz', '--append', check=False)
    assert (other.returncode, 'different models' in other.stderr) == (2, True)
    assert '50 images' in run_tool('tools/index.py', gallery).stdout


def test_mistakes_end_in_one_message(
    tmp_path, photos, features, market_root, tiny_config, tiny_checkpoint
):
    gallery = tmp_path / 'gallery'
    run_tool('tools/index.py', gallery, features)
    model = (tiny_config, tiny_checkpoint)
    other = torch.load(tiny_checkpoint)
    other['state_dict']['backbone.cls_token'] += 1
    torch.save(other, tmp_path / 'other.pth')
    (tmp_path / 'text.jpg').write_text('no image')
    query = market_root / 'query'
    for args, message in [
        (('embed.py', *model, tmp_path / 'text.jpg', '--out', tmp_path / 'f.npz'), 'text.jpg'),
        (('search.py', *model, gallery, query, '--where', 'kamera=1'), "no column 'kamera'"),
        (('search.py', tiny_config, tmp_path / 'other.pth', gallery, query), 'of the model'),
    ]:
        failed = run_tool(f'tools/{args[0]}', *args[1:], check=False)
        assert failed.returncode == 2, (args, failed.stderr)
        assert message in failed.stderr
        assert 'Traceback' not in failed.stderr


def test_skipped_images_are_reported(tmp_path, photos, tiny_config, tiny_checkpoint):
    (tmp_path / 'text.jpg').write_text('no image')
    result = run_tool(
        'tools/embed.py', tiny_config, tiny_checkpoint, photos, tmp_path / 'text.jpg',
        '--on-error', 'skip', '--out', tmp_path / 'f.jsonl',
    )  # fmt: skip
    assert f'skipped: Cannot decode {tmp_path / "text.jpg"}' in result.stderr
    assert '1 images skipped' in result.stderr
    assert len((tmp_path / 'f.jsonl').read_text().splitlines()) == 25
