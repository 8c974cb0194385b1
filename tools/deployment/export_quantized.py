"""Pack a quantized model into a file of its bit-width's size, and report what became of it.

python tools/deployment/export_quantized.py CONFIG CHECKPOINT packed.safetensors [--onnx FILE]

The report compares the packed model in the int8 runtime with the model that was trained: size,
latency (that of the same network without quantization, too), agreement of the outputs, on the
images of the test set or on random ones.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from vitdown.checkpoint import check_fit, load_checkpoint_file, unwrap_state_dict
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.models.quantization import load_packed, quantizers_of, save_packed
from vitdown.registry import MODELS


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the config, .pth or .safetensors')
    parser.add_argument('output', help='.safetensors file to write')
    parser.add_argument('--onnx', help='also write an ONNX file with int8 weights')
    parser.add_argument(
        '--onnx-flavour',
        choices=['qdq', 'integer'],
        default='qdq',
        help='qdq: weights are dequantized, products in float32 (default); integer: products of '
        'integers',
    )
    parser.add_argument(
        '--onnx-tolerance',
        type=float,
        default=1e-3,
        help='largest difference from PyTorch in standard deviations of outputs (default: 1e-3)',
    )
    parser.add_argument('--onnx-batch', type=positive, help='images at a time in it (default: any)')
    parser.add_argument(
        '--images', type=positive, default=8, help='images to compare on (default: 8)'
    )
    parser.add_argument(
        '--data', action='store_true', help='compare on the test set, not on random images'
    )
    parser.add_argument('--repeats', type=positive, default=5, help='runs to time (default: 5)')
    parser.add_argument('--threads', type=positive, default=1, help='threads (default: 1)')
    return parser.parse_args()


def full_precision(cfg: object) -> object:
    """A model's config without quantization."""
    if isinstance(cfg, dict):
        return {key: full_precision(value) for key, value in cfg.items() if key != 'quant_cfg'}
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(full_precision(value) for value in cfg)
    return cfg


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    out = model(images, mode='tensor')
    return out[-1] if isinstance(out, (tuple, list)) else out


def latency(run: Callable[[], object], repeats: int) -> float:
    """Median milliseconds, after a first run."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def load_images(cfg, model: nn.Module, number: int, from_data: bool) -> Tensor:
    """Normalised images ``(number, 3, H, W)``."""
    size = getattr(model.backbone, 'img_size', None)
    if not from_data:
        if size is None:
            raise ConfigError('The backbone does not say its input size; use --data')
        return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(0))
    batches, found = [], 0
    for data in Runner.build_dataloader(cfg.test_dataloader):
        batches.append(model.data_preprocessor(data)['inputs'])
        found += len(batches[-1])
        if found >= number:
            break
    return torch.cat(batches)[:number]


@torch.no_grad()
def main() -> None:
    args = parse_args()
    if not args.output.endswith('.safetensors') or (args.onnx or '.onnx')[-5:] != '.onnx':
        raise ConfigError('The output must be a .safetensors file, and --onnx an .onnx file')
    torch.set_num_threads(args.threads)
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    init_default_scope(cfg.get('default_scope', 'vitdown'))
    model = MODELS.build(cfg.model).eval()
    if not quantizers_of(model):
        raise ConfigError(
            f"{args.config} has no quantized model: set model.backbone.quant_cfg=dict(type='OFQ')"
        )
    skeleton = copy.deepcopy(model)
    state_dict = unwrap_state_dict(load_checkpoint_file(args.checkpoint))
    check_fit(model, state_dict, args.checkpoint)
    model.load_state_dict(state_dict, strict=False)
    if not all(quantizer.is_initialized for quantizer in quantizers_of(model)):
        raise ConfigError(
            f'{args.checkpoint} is a full-precision checkpoint: train the quantized model first'
        )
    size = save_packed(model, args.output)
    integer = load_packed(skeleton, args.output)
    images = load_images(cfg, model, args.images, args.data)
    expected, found = outputs(model, images), outputs(integer, images)
    difference = ((expected - found).abs().max() / expected.std()).item()
    agree = (expected.argmax(dim=1) == found.argmax(dim=1)).float().mean().item()
    full = sum(p.numel() * 4 for p in model.parameters())
    checkpoint = Path(args.checkpoint).stat().st_size
    times = {
        name: latency(lambda m=m: outputs(m, images[:1]), args.repeats)
        for name, m in (
            ('float32', MODELS.build(full_precision(cfg.model)).eval()),
            ('fake quantization', model),
            ('int8 runtime', integer),
        )
    }
    print(f'packed file          {size / 2**20:9.3f} MiB, {args.output}')
    print(f'parameters, float32  {full / 2**20:9.3f} MiB (checkpoint {checkpoint / 2**20:.3f} MiB)')
    for name, value in times.items():
        print(f'{name:20} {value:9.2f} ms an image, {args.threads} thread(s)')
    print(f'largest difference   {difference:9.1e} standard deviations of the output')
    print(f'same highest output  {100 * agree:9.1f} % of {len(images)} images')
    if args.onnx:
        from vitdown.deployment.quantized import export_quantized_onnx

        size = tuple(images.shape[-2:])
        off = export_quantized_onnx(
            model, args.onnx, size, args.onnx_tolerance, args.onnx_batch, args.onnx_flavour
        )
        onnx_size = Path(args.onnx).stat().st_size / 2**20
        print(f'ONNX file            {onnx_size:9.3f} MiB, differs by {off:.1e}')


if __name__ == '__main__':
    run_tool(main)
