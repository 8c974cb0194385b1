"""Convert checkpoints of other code bases to vitdown's names, or back with --reverse.

python tools/model_converters/convert.py deit deit_small_patch16_224.pth deit-small.pth

Beside dense checkpoints of NViT, whose sizes are their own, a config that runs them is written.
"""

import argparse
import io
from pathlib import Path

import torch
from mmengine.config import Config
from safetensors.torch import save

from vitdown.checkpoint import load_checkpoint_file, unwrap_state_dict, write_atomically
from vitdown.converters import CONVERTERS, convert_state_dict, export_state_dict
from vitdown.converters.nvit import nvit_arch, nvit_model_cfg
from vitdown.engine.launch import ConfigError, run_tool

NVIT_RECIPE = (
    Path(__file__).resolve().parents[2]
    / 'configs/nvit/nvit-finetune_proxy-s_8xb144-300e_in1k-224.py'
)


def write_nvit_config(arch: dict, state_dict: dict, output: Path) -> Path:
    """Write a config for a converted dense checkpoint, which is fine-tuned as NViT is."""
    model = nvit_model_cfg(arch, state_dict)
    model['backbone']['arch'] = dict(arch, _delete_=True)
    cfg = Config(dict(_base_=str(NVIT_RECIPE), model=model, load_from=str(output.resolve())))
    path = output.with_suffix('.py')
    write_atomically(cfg.pretty_text.encode(), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', choices=sorted(CONVERTERS), help='the other code base')
    parser.add_argument('input', help='.pth or .safetensors file to read')
    parser.add_argument('output', help='.pth or .safetensors file to write')
    parser.add_argument(
        '--reverse', action='store_true', help="from vitdown's names to those of the other"
    )
    args = parser.parse_args()
    if Path(args.output).suffix not in ('.pth', '.safetensors') or Path(args.output).is_dir():
        raise ConfigError(f'The output {args.output} must be a .pth or .safetensors file')
    checkpoint = load_checkpoint_file(args.input)
    state_dict = unwrap_state_dict(checkpoint)
    try:
        convert = export_state_dict if args.reverse else convert_state_dict
        converted = convert(state_dict, args.source)
        sized = args.source == 'nvit' and 'dim' in checkpoint and not args.reverse
        arch = nvit_arch(checkpoint) if sized else None
    except ValueError as error:
        raise ConfigError(f'{args.input}: {error}') from None
    if Path(args.output).suffix == '.safetensors':
        # safetensors refuses tensors that share memory
        content = save({key: value.clone().contiguous() for key, value in converted.items()})
    else:
        buffer = io.BytesIO()
        own = {'meta': {'arch': arch}} if sized else {}
        torch.save(converted if args.reverse else {'state_dict': converted, **own}, buffer)
        content = buffer.getvalue()
    write_atomically(content, args.output)
    print(f'{len(converted)} weights written to {args.output}')
    if sized:
        print(f'model.backbone.arch = {arch}')
        config = write_nvit_config(arch, converted, Path(args.output))
        print(f'Config that runs them: {config}')


if __name__ == '__main__':
    run_tool(main)
