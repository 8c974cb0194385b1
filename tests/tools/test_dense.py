"""Detection and segmentation through the tools: unpack, train, resume, test, analyse."""

import io
import json
import os
import re
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from tests.conftest import ROOT, run_tool
from tools.analysis_tools import browse_dataset
from tools.dataset_converters import unpack_camvid, unpack_coco
from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.complexity import forward_of, get_flops, input_size
from vitdown.engine.launch import ConfigError, load_config
from vitdown.registry import DATASETS, MODELS

NUCLEI = ROOT / 'configs/stvit/mask-rcnn_stvit-r-swin-mini_fpn_1xb4-4e_nuclei-256.py'
CAMVID = ROOT / 'configs/stvit/upernet_stvit-r-swin-mini_1xb8-4e_camvid-180x240.py'


@pytest.fixture(autouse=True)
def default_scope():
    """Loading a config of MMDetection doesn't reach the next test."""
    yield
    init_default_scope('vitdown')


def jpeg(rng, size) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(buffer, 'jpeg')
    return buffer.getvalue()


@pytest.fixture(scope='module')
def nuclei_pack(tmp_path_factory):
    """A pack of few small images with a disc or two each, as the real one is laid out."""
    pack = tmp_path_factory.mktemp('pack')
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(pack / 'images.zip', 'w') as archive:
        for part, count in (('train', 4), ('val', 2)):
            images, annotations = [], []
            for i in range(count):
                name = f'{part}/{i}.jpg'
                height = 64 - 16 * (i % 2)
                archive.writestr(name, jpeg(rng, (height, 80)))
                images.append(dict(id=i, file_name=name, height=height, width=80))
                for k in range(1 + i % 2):
                    x, y, side = 10.0 + 30 * k, 12.0, 20.0
                    annotations.append(
                        dict(
                            id=len(annotations) + 1, image_id=i, category_id=1, iscrowd=0,
                            bbox=[x, y, side, side], area=side * side,
                            segmentation=[[x, y, x + side, y, x + side, y + side, x, y + side]],
                        )
                    )  # fmt: skip
            content = dict(
                images=images,
                annotations=annotations,
                categories=[dict(id=1, name='nucleus')],
            )
            (pack / f'{part}.json').write_text(json.dumps(content))
    return pack


@pytest.fixture(scope='module')
def data(tmp_path_factory, nuclei_pack):
    root = tmp_path_factory.mktemp('data')
    tool = 'tools/dataset_converters/unpack_coco.py'
    output = run_tool(tool, nuclei_pack, root / 'nuclei_dsb2018').stdout
    assert 'train: 4 images, 6 instances' in output
    return {'VITDOWN_DATA': str(root)}


@pytest.fixture(scope='module')
def detector(tmp_path_factory, data):
    """Work dir of a tiny detector trained for two iterations."""
    work_dir = tmp_path_factory.mktemp('detector')
    run_tool(
        'tools/train.py', NUCLEI, '--work-dir', work_dir, '--cfg-options',
        'train_cfg.max_epochs=1', 'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0', 'default_hooks.logger.interval=1', env=data,
    )  # fmt: skip
    return work_dir


def losses(work_dir):
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_detector_trains(detector):
    entries = losses(detector)
    values = [entry['loss'] for entry in entries if 'loss' in entry]
    assert len(values) == 2
    assert all(np.isfinite(values))
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= entries[-1].keys()
    weights = load_checkpoint_file(detector / 'epoch_1.pth')['state_dict']
    assert all(value.isfinite().all() for value in weights.values())


def test_its_checkpoint_reloads(detector, data, tmp_path):
    """The same metrics, and pictures of what is found."""
    out, pictures = tmp_path / 'metrics.json', tmp_path / 'found'
    run_tool(
        'tools/test.py', NUCLEI, detector / 'epoch_1.pth', '--work-dir', tmp_path, '--out', out,
        '--show-dir', os.path.relpath(pictures, ROOT), '--cfg-options',
        'test_dataloader.num_workers=0', 'default_hooks.visualization.score_thr=0', env=data,
    )  # fmt: skip
    assert sorted(path.name for path in pictures.iterdir()) == ['0.jpg', '1.jpg']
    metrics, last = json.loads(out.read_text()), losses(detector)[-1]
    assert metrics['coco/bbox_mAP'] == pytest.approx(last['coco/bbox_mAP'], abs=1e-6)
    assert metrics['coco/segm_mAP'] == pytest.approx(last['coco/segm_mAP'], abs=1e-6)


def test_annotations_are_drawn(data, tmp_path, monkeypatch):
    """On images of two sizes in a batch; nothing but the annotated objects changes."""
    monkeypatch.setenv('VITDOWN_DATA', data['VITDOWN_DATA'])
    options = ['--batches', '1', '--cfg-options', 'train_dataloader.batch_size=2']
    options += ['train_dataloader.sampler.shuffle=False']
    options += ['train_dataloader.dataset.pipeline.3.prob=0.0']
    sheets = []
    for folder in (tmp_path / 'drawn', tmp_path / 'plain'):
        monkeypatch.setattr(sys, 'argv', ['tool', str(NUCLEI), '--out-dir', str(folder), *options])
        browse_dataset.main()
        sheets.append(np.asarray(Image.open(folder / 'train_000.png'), dtype=int))
        monkeypatch.setattr(browse_dataset, 'build_visualizer', lambda *_: None)
    # 80x64 and 80x48 at a width of 256
    assert sheets[0].shape == (205 + 2, 2 * (256 + 2), 3)
    changed = (sheets[0] != sheets[1]).any(axis=-1)
    assert (sheets[0][160:, 258 : 258 + 256] == 255).all()
    # The object at (10, 12), 20 wide and high, in both; another at (40, 12) in the second
    assert changed[50:90, 40:90].mean() > 0.9
    assert changed[50:90, 258 + 140 : 258 + 180].mean() > 0.9
    assert not changed[130:, :].any()


def test_a_detector_is_not_exported(detector, tmp_path):
    for tool, *arguments in (
        ['deployment/export_onnx.py', NUCLEI, detector / 'epoch_1.pth', tmp_path / 'a.onnx'],
        ['analysis_tools/benchmark.py', NUCLEI, '--device', 'cpu', '--backends', 'onnx'],
    ):
        result = run_tool(f'tools/{tool}', *arguments, '--shape', 64, 64, check=False)
        assert result.returncode == 2
        assert 'MaskRCNN can not be exported: ONNX files are for re-ID models' in result.stderr
        assert 'Traceback' not in result.stderr


def test_mmdets_inferencer_finds_objects_with_it(detector, data, tmp_path, monkeypatch):
    monkeypatch.setenv('VITDOWN_DATA', data['VITDOWN_DATA'])
    checkpoint = detector / 'epoch_1.pth'
    detect = DetInferencer(str(NUCLEI), str(checkpoint), device='cpu', show_progress=False)
    assert detect.visualizer.dataset_meta['classes'] == ('nucleus',)
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    (found,) = detect(image, out_dir=str(tmp_path), pred_score_thr=0.0)['predictions']
    assert set(found['labels']) == {0}
    assert len(found['bboxes']) == len(found['masks']) == len(found['scores']) > 0
    assert all(0 <= x <= 80 and 0 <= y <= 64 for *_, x, y in found['bboxes'])
    (masked,) = {tuple(mask['size']) for mask in found['masks']}
    assert masked == (64, 80)
    assert len(list(tmp_path.glob('vis/*.jpg'))) == 1


OWN_BOXES = re.findall(
    r'```python\n(.+?)```',
    (ROOT / 'docs/detection.md').read_text().split('## Your own boxes')[1],
    re.S,
)


@pytest.mark.parametrize(
    ('base', 'code'),
    [
        ('mask-rcnn_stvit-r-swin-t_fpn_8xb2-1x_coco', OWN_BOXES[0]),
        ('mask-rcnn_stvit-r-swin-mini_fpn_1xb4-4e_nuclei-256', OWN_BOXES[0]),
        ('cascade-mask-rcnn_stvit-r-swin-t_fpn_8xb2-ms-3x_coco', '\n'.join(OWN_BOXES)),
    ],
    ids=['mask-rcnn', 'nuclei', 'cascade'],
)
def test_own_boxes_as_documented(nuclei_pack, tmp_path, monkeypatch, base, code):
    """Nothing of the base's set is left, in training, validation or test."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'data/parts'
    folder.mkdir(parents=True)
    for part in ('train', 'val'):
        content = json.loads((nuclei_pack / f'{part}.json').read_text())
        content['categories'] = [dict(id=7, name='nut'), dict(id=1, name='bolt')]
        (folder / f'{part}.json').write_text(json.dumps(content))
    base = ROOT.resolve() / f'configs/stvit/{base}.py'
    if 'cascade' in base.stem:  # its heads take the place of those of the first block
        code = re.sub(r'^model = dict\(\n.+?^\)\n', '', code, flags=re.S | re.M)
    path = tmp_path / 'own.py'
    path.write_text(code.replace('CONFIG', str(base)))
    cfg = load_config(str(path))
    for loader, count in (('train', 4), ('val', 2), ('test', 2)):
        dataset = DATASETS.build(cfg[f'{loader}_dataloader'].dataset)
        assert len(dataset) == count
        assert dataset.metainfo['classes'] == ('nut', 'bolt')
        info = dataset.get_data_info(0)
        assert info['img_path'].startswith('data/parts/images/')
        assert {instance['bbox_label'] for instance in info['instances']} == {1}
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.ann_file == 'data/parts/val.json'
    heads = cfg.model.roi_head.bbox_head
    heads = [*(heads if isinstance(heads, list) else [heads]), cfg.model.roi_head.mask_head]
    assert {head.num_classes for head in heads} == {2}
    assert {head['type'] for head in heads} >= {'FCNMaskHead'}
    text = str(cfg.to_dict())
    assert not re.search(r'(train|val)2017|coco/|nuclei_dsb', text)


def test_missing_data_are_named(tmp_path):
    result = run_tool(
        'tools/train.py', NUCLEI, '--work-dir', tmp_path, check=False,
        env={'VITDOWN_DATA': str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 2
    assert 'nuclei_dsb2018/train.json' in result.stderr
    assert 'Traceback' not in result.stderr


def test_flops_of_a_detector():
    model = MODELS.build(load_config(str(NUCLEI)).model)
    cost = get_flops(model, (3, 64, 96), forward_of(model))
    backbone = get_flops(model.backbone, (3, 64, 96))
    assert cost.by_module['MaskRCNN.backbone'] == backbone.macs
    assert cost.macs > cost.by_module['MaskRCNN.neck'] + backbone.macs
    assert input_size(model) == (800, 1280)


@pytest.mark.parametrize(
    ('config', 'size'),
    [
        ('upernet_stvit-r-swin-t_8xb2-240k_ade20k-512x512', (512, 512)),
        ('upernet_swin-t_8xb2-240k_ade20k-512x512', (512, 512)),
        ('upernet_stvit-r-swin-mini_1xb8-4e_camvid-180x240', (192, 256)),
        ('upernet_swin-mini_1xb8-4e_camvid-180x240', (192, 256)),
    ],
)
def test_the_cost_of_a_segmentor_is_that_of_its_training_images(config, size):
    """Whether or not its backbone has an image size."""
    cfg = load_config(str(ROOT / f'configs/stvit/{config}.py'))
    model = MODELS.build(cfg.model)
    images = [torch.zeros(3, 512, 400) if size == (512, 512) else torch.zeros(3, 180, 240)]
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, *images[0].shape[1:])))
    batch = model.data_preprocessor(dict(inputs=images, data_samples=[sample]), training=True)
    assert tuple(input_size(model)) == tuple(batch['inputs'].shape[2:]) == size


def spoil(change):
    """How to change the annotations of a pack."""

    def write(pack):
        content = json.loads((pack / 'val.json').read_text())
        change(content)
        (pack / 'val.json').write_text(json.dumps(content))

    return write


def damage(pack):
    """One image of the archive, and not the first."""
    content = bytearray((pack / 'images.zip').read_bytes())
    with zipfile.ZipFile(pack / 'images.zip') as archive:
        start = archive.getinfo('train/1.jpg').header_offset
    content[start + 200] ^= 255
    (pack / 'images.zip').write_bytes(content)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (
            spoil(lambda c: c['images'][0].update(file_name='val/lost.jpg')),
            'val.json: val/lost.jpg and 0 more are not in images.zip',
        ),
        (spoil(lambda c: c['images'][1].pop('file_name')), r'images\[1\] has no file_name'),
        (spoil(lambda c: c.update(images=['a'])), r"val.json: images\[0\] is 'a', not an object"),
        (spoil(lambda c: c['annotations'][0].pop('image_id')), r'annotations\[0\] has no image_id'),
        (spoil(lambda c: c['annotations'][0].pop('bbox')), r'annotations\[0\] has no bbox'),
        (spoil(lambda c: c['images'][1].update(id=0)), 'val.json: images has the id 0 twice'),
        (spoil(lambda c: c['images'][1].update(id=[1])), r'images\[1\]: id must be .* got \[1\]'),
        (spoil(lambda c: c['images'][0].pop('width')), r'images\[0\] has no width'),
        (
            spoil(lambda c: c['images'][0].update(height=None)),
            r'images\[0\]: height must be a number of pixels, got None',
        ),
        (spoil(lambda c: c['categories'][0].pop('name')), r'categories\[0\] has no name'),
        (spoil(lambda c: c['annotations'][0].pop('area')), r'annotations\[0\] has no area'),
        *(
            (
                spoil(lambda c, box=box: c['annotations'][1].update(bbox=box)),
                r'annotations\[1\]: bbox must be four numbers, got',
            )
            for box in (None, [3.0], [0, 0, 5, '5'], [0, 0, 5, float('nan')])
        ),
        (damage, 'images.zip: train/1.jpg is damaged'),
        (lambda pack: (pack / 'val.json').write_text('{"images": ['), 'val.json is no JSON file'),
        (lambda pack: (pack / 'val.json').write_text('{}'), 'val.json has no list of images'),
        (lambda pack: (pack / 'val.json').write_text('[]'), 'val.json has no list of images'),
        (lambda pack: (pack / 'images.zip').write_text('page'), 'images.zip is no zip file'),
        (lambda pack: (pack / 'images.zip').unlink(), 'needs images.zip and at least one'),
    ],
    ids=[
        'image', 'file name', 'no object', 'owner', 'box', 'twice', 'list as id', 'width', 'height',
        'category', 'area', 'null', 'one', 'text', 'nan', 'damaged', 'json', 'keys', 'list', 'zip',
        'no zip',
    ],
)  # fmt: skip
def test_a_broken_pack_is_refused(nuclei_pack, tmp_path, monkeypatch, spoil, message):
    """And nothing of it is written."""
    pack = shutil.copytree(nuclei_pack, tmp_path / 'pack')
    spoil(pack)
    monkeypatch.setattr(sys, 'argv', ['tool', str(pack), str(tmp_path / 'out')])
    with pytest.raises(ConfigError, match=message):
        unpack_coco.main()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('below', ['', 'part/images'])
def test_a_file_is_no_destination(nuclei_pack, tmp_path, monkeypatch, below):
    out, camvid = tmp_path / 'out', tmp_path / 'camvid.npz'
    out.write_text('notes')
    np.savez(camvid, **camvid_pack())
    for tool, pack in ((unpack_coco, nuclei_pack), (unpack_camvid, camvid)):
        monkeypatch.setattr(sys, 'argv', ['tool', str(pack), str(out / below)])
        with pytest.raises(NotADirectoryError, match='out is a file; name a folder'):
            tool.main()
    assert out.read_text() == 'notes'


def test_another_file_than_camvids_is_refused(tmp_path, monkeypatch):
    pack = tmp_path / 'camvid.npz'
    monkeypatch.setattr(sys, 'argv', ['tool', str(pack), str(tmp_path / 'out')])
    with pytest.raises(FileNotFoundError, match='camvid.npz does not exist'):
        unpack_camvid.main()
    pack.write_text('page')
    with pytest.raises(ConfigError, match='camvid.npz is no .npz file'):
        unpack_camvid.main()
    np.savez(pack, class_names=np.array(['sky']), train_jpeg=np.zeros(1))
    with pytest.raises(ConfigError, match='has no train_offsets; is it the CamVid pack'):
        unpack_camvid.main()
    assert not (tmp_path / 'out').exists()


def camvid_pack():
    """Two small images in each part, as the real pack is laid out."""
    rng = np.random.default_rng(0)
    pack = dict(class_names=np.array([*(f'class{i}' for i in range(11)), 'unlabelled']))
    for part in ('train', 'val', 'test'):
        images = [jpeg(rng, (45, 60)) for _ in range(2)]
        pack[f'{part}_jpeg'] = np.frombuffer(b''.join(images), np.uint8)
        pack[f'{part}_offsets'] = np.cumsum([0, *map(len, images)])
        pack[f'{part}_masks'] = rng.integers(0, 12, (2, 45, 60), dtype=np.uint8)
        pack[f'{part}_names'] = np.array(['a.png', 'b.png'])
    return pack


@pytest.mark.parametrize(
    ('key', 'change', 'message'),
    [
        ('val_offsets', lambda a: a[:2], 'val_offsets has 2 entries; 2 images need 3'),
        ('test_masks', lambda a: a[:1], 'test_masks has 1 entries; 2 images need 2'),
        ('train_jpeg', lambda a: a[:10], 'train_jpeg has 10 bytes, not'),
        ('val_offsets', lambda a: a[[0, 2, 2]], 'val_offsets must begin at 0 and grow'),
        ('val_offsets', lambda a: a[[0, 2, 2]] + [0, 1, 0], 'val_offsets must begin at 0 and grow'),
        ('val_offsets', lambda a: a + [1, 0, 0], 'val_offsets must begin at 0 and grow'),
        ('val_offsets', lambda a: a / 1, 'val_offsets must have 1 dim.* whole numbers, .* float64'),
        ('test_masks', lambda a: a + 66, 'test_masks has labels from 6. to 77, class_names has 12'),
        ('test_masks', lambda a: a.astype(int) - 1, 'test_masks has labels from -1 to 10'),
        ('test_masks', lambda a: a[0], 'test_masks must have 3 dim.* got 2 of uint8'),
        (
            'val_names',
            lambda _: np.array(['a.png', 'a.jpg']),
            'val_names has two images for one file: a.png, a.jpg',
        ),
        ('val_names', lambda _: np.array('a'), r'val_names must have 1 dimension\(s\) of names'),
        ('val_names', lambda _: np.array(['a', 2], object), 'val_names is damaged or no plain'),
        ('class_names', lambda a: a[::-1], 'last of class_names must be "unlabelled"'),
    ],
)
def test_arrays_of_camvid_that_do_not_fit_are_refused(tmp_path, monkeypatch, key, change, message):
    pack = camvid_pack()
    np.savez(tmp_path / 'camvid.npz', **{**pack, key: change(pack[key])})
    monkeypatch.setattr(sys, 'argv', ['tool', str(tmp_path / 'camvid.npz'), str(tmp_path / 'out')])
    with pytest.raises(ConfigError, match=message):
        unpack_camvid.main()
    assert not (tmp_path / 'out').exists()


def test_a_segmentor_trains(tmp_path):
    """From the pack to a checkpoint and pictures, on maps of odd sizes."""
    pack = camvid_pack()
    np.savez(tmp_path / 'camvid.npz', **pack)
    tool = 'tools/dataset_converters/unpack_camvid.py'
    run_tool(tool, tmp_path / 'camvid.npz', tmp_path / 'camvid')
    mask = np.asarray(Image.open(tmp_path / 'camvid/masks/train/b.png'))
    expected = pack['train_masks'][1]
    np.testing.assert_array_equal(mask, np.where(expected == 11, 255, expected))
    run_tool(
        'tools/train.py', CAMVID, '--work-dir', tmp_path / 'work', '--cfg-options',
        'train_cfg.max_epochs=1', 'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0', env={'VITDOWN_DATA': str(tmp_path)},
    )  # fmt: skip
    assert 0 <= losses(tmp_path / 'work')[-1]['mIoU'] <= 100
    weights = load_checkpoint_file(tmp_path / 'work/epoch_1.pth')['state_dict']
    assert all(torch.isfinite(value).all() for value in weights.values())
    run_tool(
        'tools/test.py', CAMVID, tmp_path / 'work/epoch_1.pth', '--work-dir', tmp_path / 'work',
        '--show-dir', os.path.relpath(tmp_path / 'found', ROOT), '--cfg-options',
        'test_dataloader.num_workers=0', env={'VITDOWN_DATA': str(tmp_path)},
    )  # fmt: skip
    assert [len(list((tmp_path / 'found').glob(f'test_{name}*'))) for name in 'ab'] == [1, 1]
