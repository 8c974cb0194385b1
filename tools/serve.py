"""A web page that searches a gallery: upload a picture or pick one, see what looks most like it.

python tools/serve.py CONFIG CHECKPOINT gallery                   # http://127.0.0.1:7860
VITDOWN_TOKEN=secret python tools/serve.py CONFIG CHECKPOINT gallery --host 0.0.0.0 \\
    --allowed-hosts search.example.org

The page is for this machine alone and changes nothing, unless --host and --allow-add say otherwise.
"""

import argparse
import math
import os
import tempfile
from pathlib import Path

from vitdown.apis import open_gallery
from vitdown.apis.command_line import add_model_arguments, build_inferencer
from vitdown.apis.galleries import is_collection
from vitdown.engine.launch import ConfigError, run_tool

_LOCAL = ('127.0.0.1', 'localhost', '::1')


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f'must be a positive number, got {text}')
    return number


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f'must be 0 to 65535, got {text}')
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument(
        'gallery', help='folder, http://host:6333/collection, or qdrant:folder/collection'
    )
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on')
    parser.add_argument('--port', type=port, default=7860, help='0 for any free port')
    parser.add_argument(
        '--allowed-hosts', nargs='+', default=[], metavar='NAME',
        help='names by which browsers address the page, beside localhost and --host',
    )  # fmt: skip
    parser.add_argument(
        '--token-file',
        help='file with a token that users have to give (default: the environment variable '
        'VITDOWN_TOKEN, if set); needed with a --host that others can reach',
    )
    parser.add_argument(
        '--image-root', default='.', help="where the gallery's relative paths begin (default: .)"
    )
    parser.add_argument('--max-upload-mb', type=positive, default=10, help='default: 10')
    parser.add_argument('--max-megapixels', type=positive, default=40, help='default: 40')
    parser.add_argument(
        '--allow-add', metavar='FOLDER',
        help='let users add pictures, which are kept in this folder and in the gallery',
    )  # fmt: skip
    return parser.parse_args()


def in_address(host: str) -> str:
    """A host as addresses of pages write it: IPv6 in brackets."""
    return f'[{host}]' if ':' in host else host


def read_token(args: argparse.Namespace) -> str:
    if args.token_file:
        token = Path(args.token_file).read_text('utf-8').strip()
    else:
        token = os.environ.get('VITDOWN_TOKEN', '')
    if args.token_file and not token:
        raise ConfigError(f'{args.token_file} is empty; write a token into it')
    if not token and args.host not in _LOCAL:
        raise ConfigError(
            f'--host {args.host} lets others reach the page: set a token, by --token-file or '
            'VITDOWN_TOKEN'
        )
    return token


def check_writable(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f'--allow-add {folder}: pictures can not be kept there ({error.strerror}); give a '
            'folder that can be written'
        ) from error


def main() -> None:
    args = parse_args()
    try:
        import uvicorn

        from vitdown.apis.search_page import PageSettings, create_app
    except ImportError as error:
        raise ConfigError(
            f'the search page needs more packages ({error}): pip install "vitdown[serve]"'
        ) from error
    if not Path(args.image_root).is_dir():
        raise ConfigError(f'--image-root {args.image_root} is no folder')
    if args.allow_add:
        check_writable(args.allow_add)
    own_files = not is_collection(args.gallery)
    settings = PageSettings(
        hosts=tuple(in_address(host) for host in (*_LOCAL, args.host, *args.allowed_hosts)),
        token=read_token(args),
        max_upload_bytes=int(args.max_upload_mb * 1e6),
        max_pixels=int(args.max_megapixels * 1e6),
        image_root=Path(args.image_root).resolve(),
        upload_dir=Path(args.allow_add) if args.allow_add else None,
        gallery_dir=Path(args.gallery) if own_files else None,
    )
    gallery = open_gallery(args.gallery, mmap=own_files and not args.allow_add)
    app = create_app(build_inferencer(args), gallery, settings)
    config = uvicorn.Config(
        app, args.host, args.port, log_level='warning', limit_concurrency=64, server_header=False
    )
    listener = config.bind_socket()
    print(f'Search page: http://{in_address(args.host)}:{listener.getsockname()[1]}', flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == '__main__':
    run_tool(main)
