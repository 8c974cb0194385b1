"""Train, evaluate and show a small re-ID model with DCAL on the embedded synthetic set.

    make demo            or            python tools/demo.py [--epochs N] [--seed N]

The same, step by step, with a config of its own:

    CONFIG=configs/dcal/dcal_vit-mini_1xb64-40e_synthetic-128x64.py
    python tools/train.py $CONFIG
    python tools/test.py $CONFIG CHECKPOINT --show-dir D
"""

import argparse
import time
import warnings
from pathlib import Path

from mmengine.config import Config

from vitdown.engine.launch import ConfigError, build_runner, evaluate, load_config, run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/dcal/dcal_vit-mini_1xb64-40e_synthetic-128x64.py'
EPOCHS = 30
COLUMNS = ('mAP', 'CMC@1', 'CMC@5', 'CMC@10', 'mINP')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Demo on the embedded synthetic set')
    parser.add_argument('--config', default=str(CONFIG))
    parser.add_argument('--work-dir', default='work_dirs/demo')
    parser.add_argument('--epochs', type=int, default=EPOCHS, help=f'default: {EPOCHS}')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def configure(args: argparse.Namespace) -> Config:
    cfg = load_config(args.config, work_dir=args.work_dir)
    cfg.log_level = 'ERROR'
    cfg.randomness.seed = args.seed
    cfg.default_hooks.checkpoint.update(interval=10, max_keep_ckpts=1)
    if args.epochs < 1:
        raise ConfigError(f'--epochs must be at least 1, got {args.epochs}')
    cfg.train_cfg.max_epochs = args.epochs
    cfg.param_scheduler.warmup_epochs = min(cfg.param_scheduler.warmup_epochs, args.epochs - 1)
    cfg.train_cfg.val_interval = max(1, cfg.train_cfg.max_epochs // 2)
    return cfg


def print_table(rows: dict[str, dict[str, float]]) -> None:
    print(f'{"":12s}' + ''.join(f'{name:>9s}' for name in COLUMNS))
    for label, metrics in rows.items():
        values = ''.join(f'{metrics[f"reid/{name}"]:8.1f}%' for name in COLUMNS)
        print(f'{label:12s}{values}')


def main() -> None:
    args = parse_args()
    warnings.simplefilter('ignore')
    start = time.perf_counter()
    cfg = configure(args)
    work_dir = Path(cfg.work_dir)
    lists = work_dir / 'ranking_lists'

    print('Evaluating the untrained model', flush=True)
    untrained = evaluate(cfg)

    print(f'Training for {cfg.train_cfg.max_epochs} epochs', flush=True)
    training = Config(cfg.to_dict())
    training.custom_hooks = [dict(type='ProgressBarHook')]
    build_runner(training).train()
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()

    print('Evaluating the trained model', flush=True)
    pictures = dict(type='RankingListHook', out_dir=str(lists), max_queries=20)
    trained = evaluate(cfg, checkpoint, [pictures])

    print()
    print_table({'untrained': untrained, 'trained': trained})
    print(f'\nCheckpoint     {checkpoint}')
    print(f'Ranking lists  {lists}')
    print(f'Config         {args.config}')
    print(f'Took {(time.perf_counter() - start) / 60:.1f} minutes')


if __name__ == '__main__':
    run_tool(main)
