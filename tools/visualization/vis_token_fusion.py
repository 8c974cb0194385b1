"""Show which patches are fused into one token, after each layer that fuses.

python tools/visualization/vis_token_fusion.py CONFIG CHECKPOINT photos/ --out-dir fusion

Works with re-ID models and classifiers. Patches of one token have their mean colour, also where
they do not touch; captions give layer and number of tokens.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from vitdown.apis import list_images
from vitdown.checkpoint import check_fit, load_checkpoint_file, unwrap_state_dict
from vitdown.datasets.transforms.decoding import decode_image, read_bytes
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.registry import MODELS
from vitdown.visualization import draw_fusion, save_picture, trace_fusion


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the config, .pth or .safetensors')
    parser.add_argument('images', nargs='+', help='files, folders, quoted patterns')
    parser.add_argument('--out-dir', required=True, help='folder for the pictures')
    parser.add_argument('--layers', type=int, nargs='+', help='layers to show (default: all)')
    parser.add_argument('--camera', type=int, default=0, help='for models that embed cameras')
    parser.add_argument('--max-images', type=int, default=100, help='pictures (default: 100)')
    parser.add_argument('--scale', type=int, default=2, help='enlarge images (default: 2)')
    return parser.parse_args()


def read_sample(path: str, camera: int) -> dict:
    """What a test pipeline may want of an image."""
    image = decode_image(read_bytes(path, None), path, 'pillow')
    shape = image.shape[:2]
    return dict(
        img=image, img_path=path, img_shape=shape, ori_shape=shape, camera_id=camera, view_id=0
    )


def main() -> None:
    args = parse_args()
    for name in ('max_images', 'scale'):
        if getattr(args, name) < 1:
            raise ConfigError(f'--{name.replace("_", "-")} must be at least 1')
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    init_default_scope(cfg.get('default_scope', 'vitdown'))
    model = MODELS.build(cfg.model).eval()
    weights = unwrap_state_dict(load_checkpoint_file(args.checkpoint))
    check_fit(model, weights, f'Checkpoint {args.checkpoint}')
    model.load_state_dict(weights, strict=False)
    pipeline = Compose(cfg.test_dataloader.dataset.pipeline)

    paths = [sample['img_path'] for sample in list_images(args.images)][: args.max_images]
    for number, path in enumerate(paths):
        batch = pseudo_collate([pipeline(read_sample(path, args.camera))])
        (image,) = batch['inputs']
        data = model.data_preprocessor(batch, training=False)
        side = {}
        if getattr(model.backbone, 'sie', None) is not None:
            side = dict(camera_ids=[args.camera], view_ids=[0])
        (trace,) = trace_fusion(model.backbone, data['inputs'], **side)
        pixels = image.flip(0).permute(1, 2, 0).to(torch.uint8).numpy()
        picture = draw_fusion(np.ascontiguousarray(pixels), trace, args.layers, args.scale)
        save_picture(picture, args.out_dir, f'{number:05d}_{Path(path).name}')
    print(f'{len(paths)} pictures written to {args.out_dir}')


if __name__ == '__main__':
    run_tool(main)
