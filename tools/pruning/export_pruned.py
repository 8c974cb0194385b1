"""Write the dense model of a masked checkpoint, and a config that runs it.

python tools/pruning/export_pruned.py CONFIG work_dirs/.../epoch_9.pth pruned.pth [--ln-mode exact]
python tools/pruning/export_pruned.py pruned_0.5.py pruned_0.5.pth small.pth --recipe CONFIG
"""

import argparse
from pathlib import Path

from mmengine.config import Config

from vitdown.checkpoint import check_fit, load_checkpoint_file, unwrap_state_dict
from vitdown.datasets.transforms import check_key_sources
from vitdown.engine.launch import ConfigError, add_config_arguments, load_config, run_tool
from vitdown.models.pruning import Sizes, ViTStructure, save_dense
from vitdown.models.pruning.export import is_pruning_hook
from vitdown.registry import MODELS
from vitdown.visualization import draw_pruning_report, format_pruning_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='written while pruning, or one with zeros where pruned')
    parser.add_argument('output', help='.pth file to write; its config gets the suffix .py')
    parser.add_argument(
        '--ln-mode',
        choices=['dense', 'exact'],
        help="'exact' computes the same as the masked model also where the embedding was pruned "
        '(default: as in the config)',
    )
    parser.add_argument(
        '--recipe',
        metavar='CONFIG',
        help='config to fine-tune with, which all but the model is taken from, and its drop rates; '
        "for dense models, too (default: the PruningHook's, if there is one, or CONFIG)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    output = Path(args.output)
    if output.suffix != '.pth':
        raise ConfigError(f'The output {output} must be a .pth file')
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    hook = next((h for h in cfg.get('custom_hooks') or [] if is_pruning_hook(h)), {})
    recipe = args.recipe or hook.get('recipe')
    if recipe is not None:
        recipe = load_config(recipe) if isinstance(recipe, str) else Config(dict(recipe))
    check_key_sources((recipe or cfg).to_dict())  # it is written beside the checkpoint
    content = load_checkpoint_file(args.checkpoint)
    state_dict = unwrap_state_dict(content)
    model = MODELS.build(cfg.model)
    check_fit(model, state_dict, f'Checkpoint {args.checkpoint}')
    model.load_state_dict(state_dict)
    structure = ViTStructure(model, embedding=False)
    cost, history = hook.get('cost', 'latency'), []
    if 'pruning' in content:
        state = content['pruning']['pruner']
        gates, history = [gate.bool() for gate in state['gates']], state['history']
        cost = content['pruning'].get('cost', cost)
    else:
        gates = structure.gates_from_zeros(state_dict)
    if not gates[0].all():
        structure = ViTStructure(model)
    if all(gate.all() for gate in gates) and not args.recipe:
        raise ConfigError(
            f'Nothing is pruned in {args.checkpoint}; a dense model gets another config by --recipe'
        )
    print(format_pruning_report(structure, gates, cost, history))
    draw_pruning_report(structure, gates, output.with_suffix('.png'))
    as_configured = hook or cfg.model.backbone
    ln_mode = args.ln_mode or as_configured.get('ln_mode', 'dense')
    config = save_dense(cfg, model, structure, gates, output, ln_mode, recipe=recipe)
    full = sum(p.numel() for p in model.parameters())
    kept = sum(p.numel() for p in MODELS.build(load_config(str(config)).model).parameters())
    print(f'arch = {Sizes.from_counts(structure.counts(gates)).arch(structure.qk_scale)}')
    print(f'{full / 1e6:.3f} M parameters before, {kept / 1e6:.3f} M now: {output}, {config}')


if __name__ == '__main__':
    run_tool(main)
