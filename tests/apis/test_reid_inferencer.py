import http.server
import json
import threading
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image

from vitdown.apis import ReIDInferencer, create_gallery, open_gallery
from vitdown.apis.command_line import check_device
from vitdown.checkpoint import CheckpointError
from vitdown.datasets.transforms.decoding import CorruptImageError
from vitdown.engine.launch import ConfigError, load_config

NAME = '0100_c2s1_000001_00.jpg'


@pytest.fixture(scope='module')
def reid(tiny_config, tiny_checkpoint):
    return ReIDInferencer(tiny_config, tiny_checkpoint, device='cpu', batch_size=4)


@pytest.fixture(scope='module')
def photos(market_root):
    return market_root / 'bounding_box_test'


@pytest.fixture(scope='module')
def gallery(reid, photos):
    cameras = [int(path.name[6]) for path in sorted(photos.iterdir())]
    return reid.build_index(photos, metadata={'camera': cameras})


def test_features_are_those_of_the_model(reid, photos):
    embeddings = reid(photos)
    assert embeddings.features.shape == (25, 24)
    image = reid.pipeline({'img_path': str(photos / NAME)})['inputs'][None]
    batch = reid.model.data_preprocessor({'inputs': image})
    with torch.no_grad():
        expected = reid.model(batch['inputs'], mode='tensor')[0]
    row = embeddings.paths.tolist().index(str(photos / NAME))
    np.testing.assert_allclose(embeddings.features[row], expected, rtol=1e-4, atol=1e-5)


def test_every_kind_of_input_gives_the_same_feature(reid, photos):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=photos)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/{NAME}'
        image = Image.open(photos / NAME)
        kinds = [photos / NAME, address, image, np.asarray(image)[..., ::-1]]
        features = reid(kinds).features
        server.shutdown()
    np.testing.assert_allclose(features, features[:1].repeat(4, axis=0), atol=1e-6)


def test_worker_processes_keep_the_order(reid, photos, tiny_config, tiny_checkpoint):
    workers = ReIDInferencer(tiny_config, tiny_checkpoint, 'cpu', batch_size=4, num_workers=2)
    np.testing.assert_allclose(workers(photos).features, reid(photos).features, atol=1e-6)


def test_search_finds_the_image_itself(reid, photos, gallery):
    rankings = reid.search(photos / NAME, gallery, k=3)
    assert [match.rank for match in rankings[0]] == [1, 2, 3]
    best = rankings[0][0]
    assert best.score == pytest.approx(1, abs=1e-5)
    assert best.metadata == {'path': str(photos / NAME), 'camera': 2}
    other = reid.search(photos / NAME, gallery, k=30, where={'camera': 1})
    assert {match.metadata['camera'] for match in other[0]} == {1}
    assert len(other[0]) < 25


def test_rankings_as_records_files_and_pictures(reid, photos, gallery, tmp_path):
    rankings = reid.search([photos / NAME] * 2, gallery, k=2, metadata={'identity': [1, 2]})
    for suffix in ('jsonl', 'csv', 'npz'):
        rankings.save(tmp_path / f'r.{suffix}')
    records = [json.loads(line) for line in (tmp_path / 'r.jsonl').read_text().splitlines()]
    assert records == rankings.records()
    assert list(records[0]['matches'][0]) == ['rank', 'score', 'id', 'path', 'camera']
    lines = (tmp_path / 'r.csv').read_text().splitlines()
    assert lines[0] == 'query,rank,score,id,path,camera'
    assert len(lines) == 5
    with np.load(tmp_path / 'r.npz') as arrays:
        assert arrays['ids'].shape == arrays['metadata/camera'].shape == (2, 2)
    rankings.save_pictures(tmp_path / 'lists', size=(32, 16))
    assert sorted(path.name for path in (tmp_path / 'lists').iterdir()) == [
        '00000_0100_c2s1_000001_00.png',
        '00001_0100_c2s1_000001_00.png',
    ]


def test_rank_orders_arrays_without_an_index(reid, photos):
    arrays = [np.asarray(Image.open(path)) for path in sorted(photos.iterdir())[:4]]
    rankings = reid.rank(arrays[2], arrays)
    assert rankings[0][0].metadata['path'] == 'array 2'
    assert len(rankings[0]) == 4
    assert rankings.picture(0, size=(32, 16)).width > 4 * 16
    # A gallery has no pixels of them.
    found = reid.search(arrays[2], reid.build_index(arrays), k=4)
    with pytest.raises(CorruptImageError, match='No such image file: array 2.* attribute images'):
        found.picture(0)
    found.images = {f'array {number}': array for number, array in enumerate(arrays)}
    assert found.picture(0, size=(32, 16)) == rankings.picture(0, size=(32, 16))
    for k in (0, -1):
        with pytest.raises(ValueError, match=f'k must be at least 1, an integer, not {k}'):
            reid.rank(arrays[2], arrays, k)


def test_arrays_without_pixels_are_named(reid):
    with pytest.raises(ValueError, match=r'array 1: array of shape \(0, 16, 3\) has no pixels'):
        reid([np.zeros((32, 16, 3), np.uint8), np.zeros((0, 16, 3), np.uint8)])


def test_verify(reid, photos):
    paths = sorted(photos.iterdir())
    pairs = [(paths[0], paths[0]), (paths[0], paths[9])]
    features = reid([path for _, path in pairs]).features
    cosine = features[0] @ features[1] / np.linalg.norm(features[0]) / np.linalg.norm(features[1])
    result = reid.verify(pairs, threshold=0.9999)
    np.testing.assert_allclose(result.scores, [1, cosine], atol=1e-5)
    assert result.same.tolist() == [True, False]
    # Pairs in any iterable; at the threshold it is the same identity.
    again = reid.verify(iter(pairs), threshold=float(result.scores[1]))
    assert again.same.tolist() == [True, True]
    nothing = reid.verify([], threshold=0.5)
    assert nothing.scores.shape == nothing.same.shape == (0,)
    with pytest.raises(ValueError, match='two single images'):
        reid.verify([(paths[0], photos)], threshold=0.5)
    with pytest.raises(ValueError, match='a pair takes two images, got 3'):
        reid.verify([paths[:2], paths[:3]], threshold=0.5)
    with pytest.raises(ValueError, match='threshold must be a number, got nan'):
        reid.verify([paths[:2]], threshold=float('nan'))


def test_addresses_of_other_kinds_are_named(reid):
    with pytest.raises(ValueError, match='ftp://x/y.jpg: addresses begin with http://, https://'):
        reid(['ftp://x/y.jpg'])


@pytest.mark.parametrize('device', ['banana', 'cuda:99', 'meta'])
def test_devices_that_are_not_there_are_refused(device):
    with pytest.raises(ConfigError, match=f'--device {device} can not be used'):
        check_device(device)


def test_attention_of_what_the_model_sees(reid, photos):
    ((image, attention),) = reid.attend(photos / NAME)
    np.testing.assert_array_equal(image, np.asarray(Image.open(photos / NAME)))
    assert attention.scores.shape == (4, 2)
    with pytest.raises(CorruptImageError, match='No such image'):
        next(reid.attend(photos / 'none.jpg'))


def test_bad_images_stop_or_are_named(reid, photos, tmp_path):
    (tmp_path / 'torn.jpg').write_bytes((photos / NAME).read_bytes()[:200])
    (tmp_path / 'text.jpg').write_text('no image')
    inputs = [tmp_path / 'torn.jpg', photos / NAME, tmp_path / 'text.jpg', tmp_path / 'none.jpg']
    with pytest.raises(CorruptImageError, match=r'torn\.jpg.*--on-error skip'):
        reid(inputs)
    embeddings = reid(inputs, metadata={'camera': [1, 2, 3, 4]}, on_error='skip')
    assert embeddings.paths.tolist() == [str(photos / NAME)]
    assert embeddings.metadata['camera'].tolist() == [2]
    assert list(embeddings.skipped) == [str(inputs[i]) for i in (0, 2, 3)]
    assert 'No such image file' in embeddings.skipped[str(tmp_path / 'none.jpg')]
    rankings = reid.search(inputs, reid.build_index(photos), k=1, on_error='skip')
    (record,) = rankings.records()
    assert record['query'] == record['matches'][0]['path'] == str(photos / NAME)
    with pytest.raises(ValueError, match='none of the 1 images can be read'):
        reid(tmp_path / 'none.jpg', on_error='skip')


def test_untrained_models_fill_no_log(tiny_config, caplog):
    logger = MMLogger.get_instance('untrained')
    logger.addHandler(caplog.handler)
    ReIDInferencer(tiny_config, device='cpu')
    logger.info('The log goes on.')
    logger.removeHandler(caplog.handler)
    assert 'The log goes on.' in caplog.text
    assert 'patch_embed.projection.weight' not in caplog.text


def test_galleries_of_other_models_are_refused(reid, photos, gallery, tiny_config, tmp_path):
    torch.manual_seed(1)
    other = ReIDInferencer(tiny_config, device='cpu')
    assert other.fingerprint != reid.fingerprint
    with pytest.raises(ValueError, match='features of the model'):
        other.search(photos / NAME, gallery)
    gallery.save(tmp_path / 'gallery')
    assert open_gallery(tmp_path / 'gallery').model == reid.fingerprint


def test_the_pipeline_is_part_of_the_fingerprint(reid, tiny_config, tiny_checkpoint):
    cfg = load_config(str(tiny_config))
    assert ReIDInferencer(cfg, tiny_checkpoint, 'cpu').fingerprint == reid.fingerprint
    cfg.test_dataloader.dataset.pipeline[1].interpolation = 'bicubic'
    assert ReIDInferencer(cfg, tiny_checkpoint, 'cpu').fingerprint != reid.fingerprint


def test_models_that_do_not_fit(tiny_config, tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        ReIDInferencer(tiny_config, tmp_path / 'none.pth')
    torch.save({'state_dict': {'weight': torch.zeros(1)}}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='does not fit ReIdentifier'):
        ReIDInferencer(tiny_config, tmp_path / 'other.pth')
    cfg = load_config(str(tiny_config))
    cfg.test_dataloader.dataset.pipeline[0].type = 'LoadImageFromFile'
    with pytest.raises(ConfigError, match='LoadReIDImage'):
        ReIDInferencer(cfg)
    cfg.test_dataloader.dataset.pipeline[0].type = 'vitdown.LoadReIDImage'
    ReIDInferencer(cfg, device='cpu')
    cfg.test_dataloader = None
    with pytest.raises(ConfigError, match='test_dataloader'):
        ReIDInferencer(cfg)


def test_models_that_embed_cameras_get_the_camera_of_each_image(tiny_config, photos):
    cfg = load_config(str(tiny_config), {'model.backbone.sie': dict(num_cameras=3)})
    torch.manual_seed(0)
    sie = ReIDInferencer(cfg, device='cpu')
    torch.nn.init.normal_(sie.model.backbone.sie.embed)
    path = photos / NAME
    assert sie.side_information == {'camera': 3}
    first, second = sie([path, path], metadata={'camera': [0, 1]}).features
    assert np.abs(first - second).max() > 1e-3
    ranked = sie.rank(path, [path, path], 2, {'camera': [0, 1]}, {'camera': [1]})
    assert [match.metadata['camera'] for match in ranked[0]] == [1, 0]
    assert ranked[0][0].score == pytest.approx(1, abs=1e-5)
    scores = sie.verify([(path, path)] * 2, 0.5, {'camera': [(2, 2), (1, 2)]}).scores
    assert scores[0] == pytest.approx(1, abs=1e-5) != pytest.approx(scores[1], abs=1e-3)
    maps = [next(sie.attend(path, metadata={'camera': [camera]}))[1].scores for camera in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert np.abs(maps[0] - maps[2]).max() > 1e-6
    for metadata, message in [
        (None, "embeds cameras: give the camera of each image, 0 to 2, as metadata={'camera'"),
        ({'camera': [3]}, f'{NAME}: the model embeds the cameras 0 to 2, not 3'),
        ({'camera': ['c1']}, "the cameras 0 to 2, not 'c1'"),
    ]:
        with pytest.raises(ValueError, match=message):
            sie(path, metadata)
        with pytest.raises(ValueError, match=message):
            next(sie.attend(path, metadata=metadata))


@pytest.mark.parametrize('call', [partial(create_gallery, dim=4), open_gallery])
def test_a_qdrant_server_that_is_not_there_is_named(call):
    with pytest.raises(ConnectionError, match='no Qdrant server answers'):
        call('http://127.0.0.1:1/people')
