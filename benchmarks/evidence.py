"""Tables from trainings with several seeds, in pieces: what the evidence scripts share."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from benchmarks.train_table import print_table, spread
from vitdown.engine.launch import load_config
from vitdown.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]


#: What of a config decides about its metrics
FINGERPRINTED = (
    'model', 'train_dataloader', 'test_dataloader', 'test_evaluator', 'optim_wrapper',
    'param_scheduler', 'train_cfg', 'custom_hooks',
)  # fmt: skip


def fingerprint(cfg: Config, keys: Sequence[str] = FINGERPRINTED) -> str:
    """Short hash of what decides about a training's metrics, apart from the seed and folders.

    It doesn't see the code: results of code that computes something else since are for the user to
    delete.
    """
    content = json.dumps({key: cfg.get(key) for key in keys}, sort_keys=True, default=str)
    for folder in (os.environ.get('VITDOWN_DATA', 'data'), ROOT):
        content = content.replace(f'{folder}/', '')
    return hashlib.sha256(content.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Run:
    """A training that several seeds repeat: a row of a table.

    Attributes:
        name: Beginning of the results' file names.
        config: File below ``configs``.
        metric: What to report.
        options: Changes of the config.
        row: What the table calls it; the name by default.
        settings: All that the result follows from, except the seed; config, options and metric by
            default.
    """

    name: str
    config: str
    metric: str = 'accuracy/top1'
    options: dict = field(default_factory=dict)
    row: str = ''
    settings: dict | None = None

    @property
    def label(self) -> str:
        return self.row or self.name

    @property
    def full_settings(self) -> dict:
        if self.settings is not None:
            return self.settings
        return dict(config=self.config, options=self.options, metric=self.metric)

    @cached_property
    def content(self) -> str:
        """Fingerprint of the config's content."""
        cfg = load_config(str(ROOT / 'configs' / self.config), self.options)
        return fingerprint(cfg, (*FINGERPRINTED, 'val_dataloader', 'val_evaluator'))

    def result_name(self, seed: int) -> str:
        """Name of a seed's result; another one when any setting changes."""
        text = json.dumps(self.full_settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = self.name.replace(' ', '').replace(',', '-').replace('%', '')
        return f'{name}-{digest}-seed{seed}'

    def arguments(self, seed: int, work_dir: Path) -> list[str]:
        """The command line of ``tools/train.py``."""
        options = {
            'randomness.seed': seed,
            'train_dataloader.num_workers': 0,
            'val_dataloader.num_workers': 0,
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            **self.options,
        }
        settings = (f'{key}={value}' for key, value in options.items())
        config = ROOT / 'configs' / self.config
        return [str(config), '--work-dir', str(work_dir), '--resume', '--cfg-options', *settings]

    def train(self, seed: int, work_dir: Path) -> float:
        """Train and test once; the value of the metric."""
        subprocess.run(
            [sys.executable, str(ROOT / 'tools/train.py'), *self.arguments(seed, work_dir)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
        entries = [json.loads(line) for line in logs[-1].read_text().splitlines()]
        return next(e[self.metric] for e in reversed(entries) if self.metric in e)


def add_evidence_arguments(
    parser: argparse.ArgumentParser, groups: Iterable[str], work_dir: str
) -> None:
    """Arguments of a script that trains groups of runs."""
    parser.add_argument('--groups', nargs='+', choices=list(groups), default=list(groups))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--minutes', type=float, default=float('inf'))
    parser.add_argument('--work-dir', default=work_dir)


def read_result(path: Path, content: str) -> Any:
    """The value in a file of :func:`write_result`; None if there is none of this config."""
    record = json.loads(path.read_text()) if path.is_file() else {}
    return record['value'] if record.get('content') == content else None


def write_result(path: Path, content: str, value: Any, **notes: Any) -> None:
    """Keep what a training was worth.

    Args:
        path (Path): The file, whose folder exists.
        content (str): Fingerprint of the config.
        value (Any): What JSON can hold.
        **notes (Any): For readers of the file.
    """
    record = dict(value=value, **notes, content=content)
    write_atomically(json.dumps(record, indent=1).encode(), path)


def collect(
    runs: Sequence[Run], seeds: Sequence[int], work_dir: str, minutes: float = float('inf')
) -> None:
    """Train what has no result yet, and print the table of what there is.

    A result counts for the config that it was taken with; when the config's content changes, it is
    computed again.

    Args:
        runs (Sequence[Run]): The rows.
        seeds (Sequence[int]): All runs with one seed come before the next seed.
        work_dir (str): Folder for trainings and results.
        minutes (float): No training starts after this time.
    """
    start, root = time.monotonic(), Path(work_dir)
    found: dict[str, list[float]] = {run.name: [] for run in runs}
    for seed in seeds:
        for run in runs:
            name = run.result_name(seed)
            result = root / f'{name}.json'
            value = read_result(result, run.content)
            if value is None:
                if time.monotonic() - start > minutes * 60:
                    continue
                began = time.monotonic()
                value = run.train(seed, root / f'{name}-{run.content}')
                seconds = round(time.monotonic() - began)
                notes = dict(seconds=seconds, settings=run.full_settings)
                write_result(result, run.content, value, **notes)
                print(f'{run.label}, seed {seed}: {value:.2f} ({seconds} s)', flush=True)
            found[run.name].append(value)
    rows = [
        [run.label, run.metric.split('/')[-1], spread(values), str(len(values))]
        for run in runs
        if (values := found[run.name])
    ]
    print_table(['training', 'metric', 'mean ± deviation', 'seeds'], rows)
