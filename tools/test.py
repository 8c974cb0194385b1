"""Evaluate a model.

python tools/test.py CONFIG CHECKPOINT [--rerank] [--query-expansion [K]] [--tta]
    [--show-dir DIR] [--out FILE]
"""

import argparse
import os
from copy import deepcopy

import mmengine
from mmengine.config import Config

from vitdown.checkpoint import load_checkpoint_file
from vitdown.engine.launch import (
    ConfigError,
    add_config_arguments,
    add_launcher_arguments,
    build_runner,
    load_config,
    run_tool,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a model')
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the config, .pth or .safetensors')
    parser.add_argument(
        '--rerank',
        action='store_true',
        help="k-reciprocal re-ranking with the config's options (default: k1=20, k2=6, lambda=0.3)",
    )
    parser.add_argument(
        '--query-expansion',
        type=int,
        nargs='?',
        const=True,
        metavar='K',
        help="average each query with its K nearest gallery images (default: the config's k, or "
        '10)',
    )
    parser.add_argument(
        '--tta', action='store_true', help='average the features of the image and its mirror'
    )
    parser.add_argument('--amp', action='store_true', help='evaluate in mixed precision')
    parser.add_argument(
        '--show-dir',
        help='write pictures here: a ranking list for each query, or what a detector or a '
        'segmentor finds',
    )
    parser.add_argument(
        '--show-max', type=int, default=100, help='at most so many ranking lists (default: 100)'
    )
    parser.add_argument(
        '--out', help='write the features (.npz) or the metrics (.json) to this file'
    )
    add_launcher_arguments(parser)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def apply_args(cfg: Config, args: argparse.Namespace) -> None:
    cfg.launcher = args.launcher
    # Loading checks the file before the data are read.
    load_checkpoint_file(args.checkpoint)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.tta:
        apply_tta(cfg)
    if args.rerank:
        metric = reid_metric(cfg, '--rerank')
        metric.rerank = options_of(metric, 'rerank') or True
    if args.query_expansion is not None:
        metric = reid_metric(cfg, '--query-expansion')
        options = options_of(metric, 'query_expansion')
        if args.query_expansion is not True:
            options['k'] = args.query_expansion
        metric.query_expansion = options or True
    if args.out:
        if args.out.endswith('.npz'):
            reid_metric(cfg, '--out FILE.npz').out_file = args.out
        elif not args.out.endswith('.json'):
            raise ConfigError(f'--out {args.out}: use .npz for features or .json for metrics')
    if args.show_dir:
        apply_show_dir(cfg, args.show_dir, args.show_max)


def apply_show_dir(cfg: Config, folder: str, max_queries: int) -> None:
    drawing = cfg.get('default_hooks', {}).get('visualization', {})
    if drawing.get('type') == 'DetVisualizationHook':
        # MMDetection would join a relative path to the work dir anew for each batch.
        drawing.update(draw=True, test_out_dir=os.path.abspath(folder))
        return
    if drawing.get('type') == 'SegVisualizationHook':
        # MMSegmentation draws through the visualizer, below the work dir unless told.
        drawing.draw = True
        backend = dict(type='LocalVisBackend', img_save_dir=os.path.abspath(folder))
        cfg.visualizer.vis_backends = [backend]
        return
    reid_metric(cfg, '--show-dir')
    hook = dict(type='RankingListHook', out_dir=folder, max_queries=max_queries)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def reid_metric(cfg: Config, option: str) -> dict:
    """The re-ID metric among the config's test evaluators."""
    evaluator = cfg.test_evaluator
    metrics = evaluator if isinstance(evaluator, list) else [evaluator]
    for metric in metrics:
        if metric['type'] in ('ReIDMetric', 'vitdown.ReIDMetric'):
            return metric
    raise ConfigError(f"{option} needs a ReIDMetric in the config's test_evaluator")


def options_of(metric: dict, name: str) -> dict:
    """The options that the config gives to a part of the evaluation, whether it is on or not."""
    given = metric.get(name)
    return dict(given) if isinstance(given, dict) else {}


def apply_tta(cfg: Config) -> None:
    """Test on the image and its mirror, unless the config has another ``tta_pipeline``."""
    if 'tta_model' not in cfg:
        raise ConfigError("--tta needs tta_model in the config, e.g. dict(type='ReIDTTAModel')")
    if 'tta_pipeline' not in cfg:
        *steps, pack = deepcopy(cfg.test_dataloader.dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
        cfg.tta_pipeline = [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    apply_args(cfg, args)
    metrics = build_runner(cfg).test()
    if args.out and args.out.endswith('.json'):
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    run_tool(main)
