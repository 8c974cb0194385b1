"""Create the virtual environment of this checkout and install vitdown with all it needs.

Run by ``make install`` (and by ``make demo`` and ``make test``); safe to run again at any time.
This file alone has to run on any Python, to tell the user of an unsuitable one what to do.
"""

import argparse
import os
import signal
import subprocess
import sys

OLDEST, NEWEST = (3, 10), (3, 13)
CANDIDATES = ['python3.%d' % minor for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]  # noqa: UP031
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def is_supported(version):
    """Tell whether the pinned packages exist for the interpreter ``version`` (major, minor)."""
    return OLDEST <= tuple(version[:2]) <= NEWEST


def find_supported_python(candidates):
    """Return the first of ``candidates`` (names or paths) that runs and is supported, or None."""
    probe = 'import sys, venv; print("%d %d" % sys.version_info[:2])'
    for candidate in candidates:
        try:
            output = subprocess.check_output([candidate, '-c', probe], stderr=subprocess.STDOUT)
        except (OSError, subprocess.CalledProcessError):
            continue
        if is_supported([int(part) for part in output.split()]):
            return candidate
    return None


def unsupported_message(version):
    """Say why the interpreter ``version`` can't be used, and the remedy."""
    age = 'old' if tuple(version[:2]) < OLDEST else 'new'
    values = (version[0], version[1], age) + OLDEST + NEWEST
    return (
        'error: Python %d.%d is too %s: vitdown needs Python %d.%d to %d.%d.\n'  # noqa: UP031
        'remedy: install one of these and name it: make install PYTHON=/path/to/python3.12' % values
    )


def main():
    """Run the installer with a supported interpreter: this one, else another on the PATH."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    if os.name == 'nt':
        sys.exit('error: vitdown installs on Linux and macOS. On Windows, run it inside WSL 2.')
    if not is_supported(sys.version_info):
        venv = os.environ.get('VENV') or os.path.join(ROOT, '.venv')
        python = find_supported_python([os.path.join(venv, 'bin', 'python')] + CANDIDATES)
        if python is None:
            sys.exit(unsupported_message(sys.version_info))
        print('Python %d.%d is not supported, using %s' % (sys.version_info[:2] + (python,)))  # noqa: UP031
        sys.stdout.flush()
        os.execvp(python, [python] + sys.argv)

    from installer.steps import run_installation

    # A job scheduler's SIGTERM ends the running command too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_installation(ROOT))


if __name__ == '__main__':
    main()
