"""Parameters and multiply-adds of a config's model, in total and by module.

With --bits also the bits of quantized layers, the size of their weights and their bit operations.
"""

import argparse
import json

from vitdown.engine.complexity import forward_of, get_flops, input_size
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.engine.quantization_report import quantization_report
from vitdown.files import write_atomically
from vitdown.registry import MODELS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='PIXELS',
        help="height and width (or one number) of the image; default: the backbone's img_size, "
        '800 1280 for detectors, the size in training for segmentors',
    )  # fmt: skip
    parser.add_argument('--depth', type=int, default=2, help='depth of the module table')
    parser.add_argument('--bits', action='store_true', help='a table of layers with their bits')
    parser.add_argument('--json', metavar='FILE', help='write the table of --bits to a JSON file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    model = MODELS.build(cfg.model)
    shape = args.shape or input_size(model)
    if shape is None:
        raise ConfigError('The backbone does not say its input size; give --shape HEIGHT WIDTH')
    if len(shape) > 2 or min(shape) < 1:
        raise ConfigError(f'--shape takes one or two positive numbers, got {shape}')
    height, width = shape if len(shape) == 2 else (shape[0], shape[0])
    cost = get_flops(model, (3, height, width), forward_of(model))
    if args.json or args.bits:
        report = quantization_report(model, cost)
    if args.json:
        write_atomically(json.dumps(report.as_dict(), indent=2).encode(), args.json)
    if args.bits:
        print(report.as_table())
    else:
        for name, macs in cost.by_module.items():
            if name != 'Global' and name.count('.') <= args.depth:
                print(f'{macs / 1e6:12.3f} M  {name}')
    backbone_params = sum(p.numel() for p in model.backbone.parameters())
    print(f'Input:       3 x {height} x {width}')
    print(f'Parameters:  {cost.params / 1e6:.3f} M (backbone {backbone_params / 1e6:.3f} M)')
    print(f'Inference:   {cost.macs / 1e9:.3f} G multiply-adds')


if __name__ == '__main__':
    run_tool(main)
