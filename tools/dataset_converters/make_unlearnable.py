"""Write a protected copy of training images: models trained on it do badly on clean images.

Every class is filtered with a random filter of its own, drawn from a secret key. The source is one
folder of images a class; with --dataset any set of re-ID, whose identities are the classes, or of
classification.

    (umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > ~/my.key)
    python tools/dataset_converters/make_unlearnable.py photos protected --key-file ~/my.key
    python tools/dataset_converters/make_unlearnable.py data/market1501 protected \\
        --dataset Market1501 --key-file ~/my.key
    python tools/dataset_converters/make_unlearnable.py photos protected --verify \\
        --key-file ~/my.key

The key is read from a file or an environment variable and written nowhere. The same command goes on
where it was stopped.
"""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from mmengine.config import DictAction
from mmengine.registry import init_default_scope

from vitdown.datasets.unlearnable import KEY_VARIABLE, read_key
from vitdown.datasets.unlearnable.manifest import MANIFEST
from vitdown.datasets.unlearnable.protect import protect, verify, weaknesses
from vitdown.datasets.unlearnable.settings import FORMATS, Settings
from vitdown.datasets.unlearnable.sources import (
    check_apart,
    class_folder_images,
    dataset_images,
    images_elsewhere,
)
from vitdown.engine.launch import ConfigError, run_tool


def parse_args() -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='folder of the dataset; left as it is')
    parser.add_argument('output', help='new folder, or one that this tool began')
    parser.add_argument('--dataset', metavar='TYPE', help='type of a dataset, e.g. VeRi776')
    parser.add_argument(
        '--dataset-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
        help='arguments of the dataset, e.g. ann_file=zoo.csv',
    )  # fmt: skip
    parser.add_argument('--key-file', help='file that holds the key')
    parser.add_argument(
        '--key-variable', help=f'environment variable that holds it (default: {KEY_VARIABLE})'
    )
    parser.add_argument(
        '--kernel-size', type=int,
        help=f'odd side of the filters (default: {defaults.kernel_size}, for about 224 pixels; 3 '
        'for 32)',
    )  # fmt: skip
    parser.add_argument(
        '--blur', type=float, dest='blur_parameter',
        help=f'strength of the filters (default: {defaults.blur_parameter}; 0.3 with filters of 3)',
    )  # fmt: skip
    parser.add_argument(
        '--fraction', type=float, dest='poison_fraction',
        help='fraction of images to protect; below 1 there is next to no protection (default: 1)',
    )  # fmt: skip
    parser.add_argument(
        '--grayscale', action='store_true', default=None, help='filtered images become grey'
    )
    parser.add_argument(
        '--same-filter', action='store_true', default=None,
        help='one filter for all classes: a control, which protects nothing',
    )  # fmt: skip
    parser.add_argument(
        '--format', choices=FORMATS, dest='image_format',
        help=f'of the files (default: {defaults.image_format})',
    )  # fmt: skip
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        '--verify', action='store_true',
        help='write nothing; compare the output with what source, key and manifest give',
    )  # fmt: skip
    return parser.parse_args()


def given_settings(args: argparse.Namespace) -> dict:
    """The settings that the command names."""
    names = (field.name for field in fields(Settings))
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def check_arguments(args: argparse.Namespace) -> None:
    """Source, output and key file must not lie in one another; options must make sense."""
    if args.workers < 1:
        raise ConfigError(f'--workers must be at least 1, got {args.workers}.')
    if args.dataset_options and not args.dataset:
        raise ConfigError('--dataset-options are those of a --dataset; name its type.')
    source, output = Path(args.source).resolve(), Path(args.output).resolve()
    if not source.exists():
        raise ConfigError(f'The source {args.source} does not exist.')
    if output.is_relative_to(source) or source.is_relative_to(output):
        raise ConfigError(
            f'{args.source} and {args.output} lie in one another; name an output folder beside the '
            'source, so that the originals stay as they are.'
        )
    if args.key_file and Path(args.key_file).expanduser().resolve().is_relative_to(output):
        raise ConfigError(
            f'The key file {args.key_file} lies in the output, which is to be published; keep it '
            'elsewhere.'
        )


def main() -> None:
    args = parse_args()
    check_arguments(args)
    init_default_scope('vitdown')
    key = read_key(args.key_file, args.key_variable)
    if key.is_guessable:
        warn('the key is a 32-bit seed, which can be found by trying; use a long secret to publish')
    if args.dataset:
        images, num_classes = dataset_images(args.dataset, args.source, args.dataset_options)
        others = []
    else:
        images, others = class_folder_images(args.source)
        num_classes = None
    check_apart(images, args.source, args.output)
    if others:
        warn(f'{len(others)} files left out, not images of a class: {", ".join(others[:5])}')
    if args.verify:
        expected = given_settings(args)
        report(verify(images, args.output, key, args.workers, num_classes=num_classes, **expected))
        return
    if elsewhere := images_elsewhere(images, args.source):
        warn(
            f'{len(elsewhere)} images lie outside of {args.source}, and what is written shows '
            f'their whole paths, e.g. {elsewhere[0]}; bring or link them into it before you publish'
        )
    settings = Settings(**given_settings(args))
    for weakness in weaknesses(images, key, settings, num_classes):
        warn(weakness)
    protect(images, args.output, key, settings, args.workers, num_classes=num_classes)
    classes = len({image.label for image in images})
    print(f'{args.output}: {len(images)} images of {classes} classes, listed in {MANIFEST}')


def report(check) -> None:
    """Print what was found; an incomplete or different copy is an error."""
    print(f'{len(check.matching)} images match')
    wrong = {
        'differ': check.different,
        'are missing': check.missing,
        'are not part of it': check.unlisted,
    }
    for what, names in wrong.items():
        if names:
            print(f'{len(names)} files {what}: {", ".join(names[:5])}')
    if any(wrong.values()):
        raise ConfigError('The output is not what source, key and manifest give.')


def warn(message: str) -> None:
    print(f'warning: {message}', file=sys.stderr)


if __name__ == '__main__':
    run_tool(main)
