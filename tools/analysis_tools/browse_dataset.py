"""Write pictures of what a config's training or test pipeline makes of the images."""

import argparse
from pathlib import Path

import numpy as np
from mmengine.runner import Runner
from PIL import Image

from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--out-dir', required=True, help='folder for the pictures')
    parser.add_argument(
        '--phase', choices=['train', 'val', 'test'], default='train', help='which data loader'
    )
    parser.add_argument('--batches', type=int, default=4, help='number of pictures')
    return parser.parse_args()


def contact_sheet(images: list[np.ndarray], columns: int) -> Image.Image:
    """Tile RGB images (H, W, 3) in rows of ``columns``."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    loader_cfg = cfg.get(f'{args.phase}_dataloader')
    if not loader_cfg:
        raise ConfigError(f'The config has no {args.phase}_dataloader')
    loader_cfg.num_workers = 0
    loader = Runner.build_dataloader(loader_cfg, seed=cfg.get('randomness', {}).get('seed'))
    columns = getattr(loader.sampler, 'num_instances', 8)
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for number, batch in zip(range(args.batches), loader):
        # Pipelines work in BGR, as MMCV does.
        images = [
            image.flip(0).permute(1, 2, 0).clamp(0, 255).byte().numpy() for image in batch['inputs']
        ]
        path = out_dir / f'{args.phase}_{number:03d}.png'
        contact_sheet(images, 4 * columns).save(path)
        identities = [sample.get('identity') for sample in batch['data_samples']]
        print(f'{path}: {len(images)} images of {len(set(identities))} identities')


if __name__ == '__main__':
    run_tool(main)
