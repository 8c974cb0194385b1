"""Runs commands, keeps their output in a log file and shows that something is going on."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from .errors import InstallError, explain

_NINJA_COUNT = re.compile(r'\[(\d+)/(\d+)\]')
_TAIL_LINES = 15


class Runner:
    """Runs commands one after the other.

    Args:
        log_path: File that the output of all commands is appended to.
        env: Environment variables of the commands.
        stream: Where progress is shown: a line that changes in place on a terminal, else a line
            every ``interval`` seconds.
        interval: Seconds between two lines when ``stream`` is no terminal.
    """

    def __init__(
        self,
        log_path: Path,
        env: Mapping[str, str],
        stream: TextIO | None = None,
        interval: float = 30.0,
    ) -> None:
        self.log_path = log_path
        self.env = dict(env)
        self.stream = stream or sys.stdout
        self.interval = interval

    def say(self, message: str) -> None:
        """Show a line to the user."""
        print(message, file=self.stream, flush=True)

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Run ``command`` and wait for it.

        Args:
            command: Program and arguments.
            env: Environment variables in addition to the runner's own.

        Raises:
            InstallError: The command failed; the message has the end of its output, the cause
                where it is known, and the path of the log.
        """
        code, output = self.capture(command, env)
        if code:
            lines = [line[:200] for line in output.splitlines() if line.strip()]
            known = explain(output)
            problem, remedy = known or (
                f'"{_shorten(command)}" failed with code {code}',
                'see the log for the cause; the same command run again goes on where it stopped',
            )
            details = '\n'.join(f'    {line}' for line in lines[-_TAIL_LINES:])
            raise InstallError(problem, f'{remedy}\nlog: {self.log_path}', details)

    def capture(
        self, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run ``command`` like :meth:`run`, but return its exit status and its output."""
        with self.log_path.open('a+', encoding='utf-8', errors='replace') as log:
            log.write(f'\n$ {" ".join(command)}\n')
            log.flush()
            start = log.tell()
            try:
                process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**self.env, **(env or {})},
                )
            except OSError as error:
                raise InstallError(
                    f'{command[0]} does not run ({error.strerror})',
                    'remove the environment and install again: make clean-env install',
                ) from error
            try:
                code = self._wait(process)
            except BaseException:
                process.terminate()
                process.wait()
                raise
            log.seek(start)
            return code, log.read()

    def _wait(self, process: subprocess.Popen) -> int:
        on_terminal = self.stream.isatty()
        started = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(timeout=0.5 if on_terminal else self.interval)
                except subprocess.TimeoutExpired:
                    elapsed = format_seconds(time.monotonic() - started)
                    text = f'      {elapsed} {last_activity(self.log_path)}'
                    if on_terminal:
                        print(f'\r\033[K{text}', end='', file=self.stream, flush=True)
                    else:
                        self.say(text)
        finally:
            if on_terminal:
                print('\r\033[K', end='', file=self.stream, flush=True)


def last_activity(log_path: Path, width: int = 64) -> str:
    """Return the last line of a log in at most ``width`` characters.

    Of a compilation only the number of files is told, as in ``'compiled 12 of 95 files'``.
    """
    with log_path.open('rb') as log:
        log.seek(max(0, log_path.stat().st_size - 65536))
        text = log.read().decode('utf-8', errors='replace')
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ''
    count = _NINJA_COUNT.match(lines[-1])
    if count:
        return f'compiled {count[1]} of {count[2]} files'
    return lines[-1][:width]


def format_seconds(seconds: float) -> str:
    """Format a duration: ``75.2`` -> ``'1:15'``."""
    minutes, rest = divmod(int(seconds), 60)
    return f'{minutes}:{rest:02d}'


def _shorten(command: Sequence[str], width: int = 100) -> str:
    text = ' '.join(command)
    return text if len(text) <= width else text[: width - 3] + '...'
