"""The secret that filters are drawn from: read from a file or a variable, never shown."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from vitdown.config import KEY_VARIABLE

_MIN_LENGTH = 16
_MIN_VARIETY = 8


class KeyUnavailableError(ValueError):
    """There is no key where it should be, or it can't be used."""


class Key:
    """A secret and the seed that follows from it.

    Text of the form ``seed:0`` is a seed of NumPy's legacy generator as the paper's code takes it,
    0 to 2**32 - 1. Anyone who has one clean and filtered pair of images can find such a seed by
    trying all of them: it is for reproducing published figures. Any other text must have at least
    16 characters, zeros at its beginning not counted, at least 8 of them different; the eight
    32-bit words (big-endian) of its SHA-256 are the seed.

    Printing or formatting a key shows neither text nor seed.

    Args:
        text: The secret; white space around it does not count.
        source: Where it comes from, for messages.

    Raises:
        KeyUnavailableError: The text is too short or monotonous, or no valid seed.
    """

    def __init__(self, text: str, source: str = 'the key') -> None:
        text = text.strip()
        match = re.fullmatch(r'seed:(\d+)', text)
        if match is None and text.startswith('seed:') or match and int(match[1]) >= 2**32:
            raise KeyUnavailableError(
                f"{source}: after 'seed:' there must be an integer from 0 to 2**32 - 1."
            )
        length, variety = len(text.lstrip('0')), len(set(text))
        if match is None and (length < _MIN_LENGTH or variety < _MIN_VARIETY):
            raise KeyUnavailableError(
                f'{source} is too short: {length} characters, {variety} different ones, at least '
                f'{_MIN_LENGTH} and {_MIN_VARIETY} are needed (zeros at the beginning do not '
                "count). Make a good one with: python -c 'import secrets; "
                "print(secrets.token_hex(32))'"
            )
        self._text = text
        self.is_guessable = match is not None
        if match:
            self.seed: int | tuple[int, ...] = int(match[1])
        else:
            words = np.frombuffer(hashlib.sha256(text.encode()).digest(), '>u4')
            self.seed = tuple(int(word) for word in words)

    def fingerprint(self, salt: bytes) -> str:
        """Hexadecimal digest that recognises the key; too slow to compute to try many keys."""
        digest = hashlib.scrypt(self._text.encode(), salt=salt, n=2**14, r=8, p=1, dklen=16)
        return digest.hex()

    def __repr__(self) -> str:
        return 'Key(<secret>)'


def read_key(key_file: str | os.PathLike | None = None, key_variable: str | None = None) -> Key:
    """Read the key from a file, or from an environment variable.

    Messages leave out names of files and variables that don't exist: given in the wrong place, they
    are the key itself.

    Args:
        key_file: File whose whole content is the key.
        key_variable: Name of the environment variable, ``VITDOWN_UNLEARNABLE_KEY`` by default.

    Raises:
        KeyUnavailableError: Both are given, one is no text, the file can't be read, the variable is
            not set, or the key is no good.
    """
    if key_file is not None and key_variable is not None:
        raise KeyUnavailableError('Give either a key file or an environment variable, not both.')
    if not isinstance(key_file, str | os.PathLike | None) or not isinstance(
        key_variable, str | None
    ):
        raise KeyUnavailableError(
            'Key file and environment variable are named by text, and what was given is none. (It '
            'is not repeated here, in case it is the key itself.)'
        )
    if key_file is not None:
        try:
            text = Path(key_file).expanduser().read_text('utf-8-sig')
        except (OSError, ValueError) as error:
            reason = getattr(error, 'strerror', None) or 'it is no text file'
            # Without the original error, which has the name
            raise KeyUnavailableError(
                f'Cannot read the key file that was named: {reason}. (Its name is not repeated '
                'here, in case it is the key itself.)'
            ) from None
        return Key(text, f'the key in {key_file}')
    variable = KEY_VARIABLE if key_variable is None else key_variable
    if not os.environ.get(variable):
        what = f'variable {variable}' if variable == KEY_VARIABLE else 'variable that was named'
        raise KeyUnavailableError(
            f'No key: the environment {what} is not set. Set it, or put the key into a file and '
            'name that (key_file in configs, --key-file on the command line).'
        )
    return Key(os.environ[variable], f'the key in the environment variable {variable}')
