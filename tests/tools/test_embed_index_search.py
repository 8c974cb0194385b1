"""tools/embed.py, index.py and search.py as a user runs them, one after the other."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import run_tool
from tools import embed, index
from vitdown.apis import load_embeddings, open_gallery
from vitdown.engine.launch import ConfigError, load_config
from vitdown.registry import MODELS


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


def test_galleries_grow_by_files_of_the_same_model(tmp_path, features, monkeypatch, capsys):
    gallery, more, other = (tmp_path / name for name in ('gallery', 'more.npz', 'other.npz'))
    embeddings = load_embeddings(features)
    # One image is in the gallery already.
    paths = np.array([embeddings.paths[0], *(f'{path}.new' for path in embeddings.paths[1:])])
    replace(embeddings, paths=paths).save(more)
    replace(embeddings, model='0123456789abcdef').save(other)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['index.py', str(gallery), *map(str, args)])
        index.main()
        return len(open_gallery(gallery))

    with pytest.raises(ConfigError, match='25 of 50 images are in the gallery already or given tw'):
        run(features, features)
    assert run(features, '--factory', 'HNSW8') == 25
    assert run(more, '--append', '--factory', 'HNSW8', '--on-duplicate', 'skip') == 49
    assert 'skipped: 1 of 25 images are in the gallery already' in capsys.readouterr().err
    assert run(more, features, '--append', '--on-duplicate', 'skip') == 49
    for args, error, message in [
        ((features,), FileExistsError, 'holds a gallery already'),
        ((more, '--append'), ConfigError, '25 of 25 images .* --on-duplicate skip leaves them out'),
        ((other, '--append'), ConfigError, 'different models'),
        ((more, '--append', '--metric', 'euclidean'), ConfigError, 'has the metric cosine'),
        ((more, '--append', '--factory', 'Flat'), ConfigError, 'has the factory HNSW8'),
        (('--append',), SystemExit, '2'),
    ]:
        with pytest.raises(error, match=message):
            run(*args)
    assert len(open_gallery(gallery)) == 49
    assert 'name the feature files' in capsys.readouterr().err


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
    embeddings = load_embeddings(features)
    columns = {**embeddings.metadata, 'camera': np.array(['north'] * len(embeddings))}
    paths = np.array([f'{path}.new' for path in embeddings.paths])
    replace(embeddings, paths=paths, metadata=columns).save(tmp_path / 'text.npz')
    query = market_root / 'query'
    for args, message in [
        (('embed.py', *model, tmp_path / 'text.jpg', '--out', tmp_path / 'f.npz'), 'text.jpg'),
        (('search.py', *model, gallery, query, '--where', 'kamera=1'), "no column 'kamera'"),
        (('index.py', gallery, tmp_path / 'text.npz', '--append'), "'camera' holds int64"),
        (('search.py', tiny_config, tmp_path / 'other.pth', gallery, query), 'of the model'),
    ]:
        failed = run_tool(f'tools/{args[0]}', *args[1:], check=False)
        assert failed.returncode == 2, (args, failed.stderr)
        assert message in failed.stderr
        assert 'Traceback' not in failed.stderr


def test_models_that_embed_cameras_are_told_the_camera(
    tmp_path, market_root, tiny_config, monkeypatch
):
    sie = {'model.backbone.sie': dict(num_cameras=3)}
    model = MODELS.build(load_config(str(tiny_config), sie).model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'sie.pth')
    query = next((market_root / 'query').iterdir())
    (tmp_path / 'table.csv').write_text(f'path,camera\n{query},1\n')

    def run(*args):
        command = [
            'embed.py', tiny_config, tmp_path / 'sie.pth', query, '--out', tmp_path / 'f.npz',
            *args, '--cfg-options', 'model.backbone.sie=dict(num_cameras=3)',
        ]  # fmt: skip
        monkeypatch.setattr(sys, 'argv', list(map(str, command)))
        embed.main()
        return load_embeddings(tmp_path / 'f.npz').metadata['camera'].tolist()

    assert run('--camera', '2') == [2]
    assert run('--metadata', tmp_path / 'table.csv') == [1]
    with pytest.raises(ValueError, match='give the camera of each image, 0 to 2, .* by --camera'):
        run()
    with pytest.raises(ConfigError, match="a column 'camera' already: leave out --camera"):
        run('--metadata', tmp_path / 'table.csv', '--camera', '2')


def test_skipped_images_are_reported(tmp_path, photos, tiny_config, tiny_checkpoint):
    (tmp_path / 'text.jpg').write_text('no image')
    result = run_tool(
        'tools/embed.py', tiny_config, tiny_checkpoint, photos, tmp_path / 'text.jpg',
        '--on-error', 'skip', '--out', tmp_path / 'f.jsonl',
    )  # fmt: skip
    assert f'skipped: Cannot decode {tmp_path / "text.jpg"}' in result.stderr
    assert '1 images skipped' in result.stderr
    assert len((tmp_path / 'f.jsonl').read_text().splitlines()) == 25
