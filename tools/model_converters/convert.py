"""Convert checkpoints of other code bases to vitdown's names, or back with --reverse.

python tools/model_converters/convert.py deit deit_small_patch16_224.pth deit-small.pth
"""

import argparse
import io
from pathlib import Path

import torch
from safetensors.torch import save

from vitdown.checkpoint import load_checkpoint_file, unwrap_state_dict, write_atomically
from vitdown.converters import CONVERTERS, convert_state_dict, export_state_dict
from vitdown.converters.nvit import nvit_arch
from vitdown.engine.launch import ConfigError, run_tool


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
    except ValueError as error:
        raise ConfigError(f'{args.input}: {error}') from None
    if Path(args.output).suffix == '.safetensors':
        # safetensors refuses tensors that share memory
        content = save({key: value.clone().contiguous() for key, value in converted.items()})
    else:
        buffer = io.BytesIO()
        torch.save(converted if args.reverse else {'state_dict': converted}, buffer)
        content = buffer.getvalue()
    write_atomically(content, args.output)
    print(f'{len(converted)} weights written to {args.output}')
    if args.source == 'nvit' and 'dim' in checkpoint and not args.reverse:
        print(f'model.backbone.arch = {nvit_arch(checkpoint)}')


if __name__ == '__main__':
    run_tool(main)
