# SPDX-License-Identifier: Apache-2.0
"""CNI executables as child processes: found on CNI_PATH, started under the name they were found by, ended in time."""

import errno
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from multus_py.cni import names
from multus_py.cni.errors import CniError, Code

T = TypeVar("T")
_BUSY_TRIES = 6
_BUSY_PAUSE = 0.5  # seconds; "text file busy": the executable is being replaced
_LAST_WORDS = 2.0  # seconds for the pipes of an executable that was ended


@dataclass(frozen=True)
class ProcessResult:
    """How an executable ended: *status* is its exit code, or minus the signal that ended it."""

    status: int
    stdout: bytes
    stderr: bytes


class Executables(Protocol):
    """What starts executables: this process (`Children`), or the daemon's spawner."""

    def find(self, name: str, folders: tuple[str, ...]) -> Path | None:
        """Return the first regular file of that name in *folders*, links unresolved; None for what is no file name."""

    def run(self, path: Path, env: Mapping[str, str], stdin: bytes, timeout: float) -> ProcessResult:
        """Run it to its end; code 5 when it cannot be started, 11 when *timeout* seconds were not enough."""


@dataclass(frozen=True)
class Children:
    """Starts executables as children of this process, with *environment* beside what the call says."""

    environment: Mapping[str, str] = field(default_factory=dict)
    sleep: Callable[[float], None] = time.sleep

    def find(self, name: str, folders: tuple[str, ...]) -> Path | None:
        """Return the first regular file of that name in *folders*, links unresolved."""
        for candidate in candidate_paths(name, folders):
            try:
                if stat.S_ISREG(candidate.stat().st_mode):
                    return candidate
            except (OSError, ValueError):  # ValueError: a folder that can be no path
                continue
        return None

    def run(self, path: Path, env: Mapping[str, str], stdin: bytes, timeout: float) -> ProcessResult:
        """Run it to its end in a session of its own, so that what it started ends with it."""
        process = self._start(path, {**self.environment, **env})
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired as cause:
            raise timeout_error(path, timeout) from cause
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                _drop(process)
        return ProcessResult(process.returncode, stdout, stderr)

    def _start(self, path: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return retry_while_busy(
            path,
            lambda: subprocess.Popen(
                [str(path)], stdin=pipe, stdout=pipe, stderr=pipe, env=dict(env), start_new_session=True
            ),
            self.sleep,
        )


def _drop(process: "subprocess.Popen[bytes]") -> None:
    """Close the pipes of what was ended: a process that it started in another session may hold their other ends."""
    try:
        process.communicate(timeout=_LAST_WORDS)
    except subprocess.TimeoutExpired:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        process.poll()  # it is collected, unless the kernel does not let it end


def retry_while_busy(path: Path, start: Callable[[], T], sleep: Callable[[float], None]) -> T:
    """Return what *start* returns; tried again while *path* is being replaced ("text file busy"), code 5 in the end."""
    for last in (*[False] * (_BUSY_TRIES - 1), True):
        try:
            return start()
        except OSError as cause:
            if last or cause.errno != errno.ETXTBSY:
                raise start_error(path, cause) from cause
        sleep(_BUSY_PAUSE)
    raise AssertionError("the last try returns or raises")


def candidate_paths(name: str, folders: Iterable[str]) -> list[Path]:
    """Return where an executable of that name may be: in a folder itself, never below or above it.

    What is more than a file name is nowhere; a relative folder, which depends on where we were started, is left out.
    """
    if not names.is_plugin_type(name):
        return []
    return [Path(folder) / name for folder in folders if folder.startswith("/")]


def start_error(path: Path, cause: OSError) -> CniError:
    """Return the error for an executable that the kernel does not start."""
    return CniError(Code.IO, f"cannot execute {path}: {os.strerror(cause.errno or 0)}")


def timeout_error(path: Path, timeout: float) -> CniError:
    """Return the error for an executable that was ended after *timeout* seconds."""
    return CniError(
        Code.TRY_AGAIN,
        f"{path} took longer than {timeout:g} s and was ended",
        "raise 'execTimeout' if it is slow by nature",
    )
