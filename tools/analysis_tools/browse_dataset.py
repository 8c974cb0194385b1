"""Write pictures of what a config's training or test pipeline makes of the images.

With what is annotated, for training detection and segmentation: boxes, masks, classes of pixels.
"""

import argparse
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image
from torch.utils.data import DataLoader

from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser)
    parser.add_argument('--out-dir', required=True, help='folder for the pictures')
    parser.add_argument(
        '--phase', choices=['train', 'val', 'test'], default='train', help='which data loader'
    )
    parser.add_argument('--batches', type=int, default=4, help='number of pictures')
    return parser.parse_args()


def contact_sheet(images: list[np.ndarray], columns: int) -> Image.Image:
    """Tile RGB images (H, W, 3) in rows of ``columns``, each in a cell of the largest size."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(sheet)


def build_visualizer(cfg: Config, phase: str, loader: DataLoader) -> Visualizer | None:
    """What draws the annotations of MMDetection's and MMSegmentation's training sets.

    None for other sets, and in test pipelines, whose annotations are those of the original image.
    """
    if cfg.get('default_scope') not in ('mmdet', 'mmseg') or phase != 'train':
        return None
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None})
    visualizer.dataset_meta = loader.dataset.metainfo
    return visualizer


def draw(visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
    """An image (H, W, 3) with the annotations of its sample."""
    instances = sample.get('gt_instances')
    if instances is not None:
        instances.bboxes = instances.bboxes.tensor
    visualizer.add_datasample('', image, sample, draw_pred=False)
    return visualizer.get_image()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    loader_cfg = cfg.get(f'{args.phase}_dataloader')
    if not loader_cfg:
        raise ConfigError(f'The config has no {args.phase}_dataloader')
    loader_cfg.num_workers = 0
    loader = Runner.build_dataloader(loader_cfg, seed=cfg.get('randomness', {}).get('seed'))
    columns = getattr(loader.sampler, 'num_instances', 8)
    visualizer = build_visualizer(cfg, args.phase, loader)
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for number, batch in zip(range(args.batches), loader):
        # Pipelines work in BGR, as MMCV does.
        images = [
            image.flip(0).permute(1, 2, 0).clamp(0, 255).byte().numpy() for image in batch['inputs']
        ]
        samples = batch['data_samples']
        if visualizer:
            images = [draw(visualizer, *pair) for pair in zip(images, samples)]
        path = out_dir / f'{args.phase}_{number:03d}.png'
        contact_sheet(images, min(len(images), 4 * columns)).save(path)
        identities = {sample.get('identity') for sample in samples} - {None}
        whose = f' of {len(identities)} identities' if identities else ''
        print(f'{path}: {len(images)} images{whose}')


if __name__ == '__main__':
    run_tool(main)
