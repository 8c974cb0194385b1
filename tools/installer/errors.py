"""What can go wrong in an installation, and what to do about it."""

from __future__ import annotations

import re

# The first pattern found in a failed command's output names the cause; specific ones come first.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r'No space left on device',
        'the disk is full',
        'free some space (an installation takes about 12 GB) and run the same command again',
    ),
    (
        r'Python\.h: No such file',
        'the headers of Python are missing',
        'install them (Debian, Ubuntu: apt install python3-dev) and run the same command again',
    ),
    (
        r'Killed signal terminated|internal compiler error: Killed|signal 9',
        'the machine ran out of memory while compiling',
        'compile fewer files at a time: make install MAX_JOBS=1',
    ),
    (
        r'THESE PACKAGES DO NOT MATCH THE HASHES|Hash mismatch',
        'a downloaded file is damaged',
        'run "pip cache purge" and the same command again',
    ),
    (
        r'CERTIFICATE_VERIFY_FAILED|SSLError',
        'the certificate of the package index is not trusted',
        "point PIP_CERT to your network's certificate file, or correct the machine's clock",
    ),
    (
        r'Temporary failure in name resolution|Name or service not known|nodename nor servname'
        r'|NewConnectionError|ConnectTimeout|ReadTimeout|Max retries exceeded'
        r'|Network is unreachable|Connection (?:refused|reset|aborted)|ProxyError'
        r'|IncompleteRead|Failed to establish a new connection',
        'the package index could not be reached',
        'check the network (and HTTPS_PROXY or the pip configuration, if your network needs them)'
        ' and run the same command again: it goes on where it stopped',
    ),
    (
        r'No matching distribution found for ([^\s;]+)',
        'the package index has no {0} for this machine',
        'check that the index in your pip configuration is complete, and that this is 64-bit Linux'
        ' or macOS on Apple silicon',
    ),
    (
        r'ResolutionImpossible',
        'the requirements contradict each other',
        'check what was changed in requirements.txt',
    ),
    (
        r"command '[^']*' failed|ninja: build stopped|Error compiling objects",
        'compiling failed',
        'look for the first "error:" in the log; the compiler must know C++17 (GCC 9, clang 10)',
    ),
)


class InstallError(Exception):
    """A failure with its remedy, shown to the user as one message.

    Args:
        problem: What is wrong, in one sentence.
        remedy: What the user can do about it.
        details: Lines that help to understand it, such as the end of a log.
    """

    def __init__(self, problem: str, remedy: str, details: str = '') -> None:
        self.problem = problem
        self.remedy = remedy
        self.details = details
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.details] if self.details else []
        return '\n'.join([*parts, f'error: {self.problem}', f'remedy: {self.remedy}'])


def explain(output: str) -> tuple[str, str] | None:
    """Find the known cause in the output of a failed command.

    Returns:
        The cause and its remedy, or None when no known pattern occurs.
    """
    for pattern, cause, remedy in _CAUSES:
        match = re.search(pattern, output)
        if match:
            return cause.format(*match.groups()), remedy
    return None
