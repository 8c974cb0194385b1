"""Write an ONNX file of a re-ID model or a classifier, checked against PyTorch.

python tools/deployment/export_onnx.py CONFIG CHECKPOINT model.onnx [--preprocess] [--openvino]

Input 'images': normalised images (B, 3, H, W) float32, or with --preprocess decoded ones,
(B, H, W, 3) uint8 RGB. Models with side information (SIE) have inputs 'camera_ids' and 'view_ids',
(B,) int64, besides. Output 'output': features (B, D) or logits (B, classes). B may be any.
"""

import argparse

from vitdown.checkpoint import check_fit, load_checkpoint_file, unwrap_state_dict
from vitdown.deployment import DeployModel, export_onnx
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.registry import MODELS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the config, .pth or .safetensors')
    parser.add_argument('output', help='.onnx file to write')
    parser.add_argument(
        '--preprocess', action='store_true', help='take decoded images and normalise them'
    )
    parser.add_argument(
        '--openvino', action='store_true', help='write OpenVINO files (.xml, .bin) beside it, too'
    )
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
        help="size of the images (default: the backbone's img_size)",
    )  # fmt: skip
    parser.add_argument(
        '--tolerance', type=float, default=1e-3,
        help='largest difference allowed, as a share of the largest output (default: 1e-3)',
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.output.endswith('.onnx'):
        raise ConfigError(f'The output {args.output} must be an .onnx file')
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    state_dict = unwrap_state_dict(load_checkpoint_file(args.checkpoint))
    model = MODELS.build(cfg.model)
    check_fit(model, state_dict, args.checkpoint)
    model.load_state_dict(state_dict, strict=False)
    size = args.shape or getattr(model.backbone, 'img_size', None)
    if size is None:
        raise ConfigError('The backbone does not say its input size; give --shape HEIGHT WIDTH')
    deployed = DeployModel(model, args.preprocess)
    report(args.output, size, export_onnx(deployed, args.output, tuple(size), args.tolerance))
    if args.openvino:
        from vitdown.deployment.openvino import export_openvino

        path = args.output.removesuffix('.onnx') + '.xml'
        report(
            path, size, export_openvino(deployed, args.output, path, tuple(size), args.tolerance)
        )


def report(path: str, size: tuple[int, int], difference: float) -> None:
    print(
        f'{path}: {size[0]}x{size[1]}, batch of any size, differs from PyTorch by '
        f'{difference:.1e} of the largest output'
    )


if __name__ == '__main__':
    run_tool(main)
