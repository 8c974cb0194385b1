"""Writing files so that a kill at any moment leaves the old or the new content, never a mix."""

import os
import tempfile
from pathlib import Path


def write_atomically(content: bytes, path: str | os.PathLike) -> None:
    """Write a file that is either complete or not there: temporary file, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent
    )
    try:
        with os.fdopen(descriptor, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; this one gets the permissions any new file would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def check_folder(path: str | os.PathLike) -> None:
    """Check that a path is a folder, or that one can be made there.

    Raises:
        NotADirectoryError: If the path or one above it is a file.
    """
    path = Path(path)
    for place in (path, *path.parents):
        if place.is_file():
            raise NotADirectoryError(f'{place} is a file; name a folder')


def sync(path: str | os.PathLike) -> None:
    """Force a file, or the entries of a directory, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
