# SPDX-License-Identifier: Apache-2.0
"""CNI executables as child processes: found on CNI_PATH, run with a timeout."""

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
_PIPE_TIMEOUT = 2.0  # seconds to read the pipes of an executable that was killed


@dataclass(frozen=True)
class ProcessResult:
    """How an executable ended: *status* is its exit code, or minus the signal that killed it."""

    status: int
    stdout: bytes
    stderr: bytes


class Executables(Protocol):
    """Finds and runs executables: in this process (`Children`), or by the daemon's spawner."""

    def find(self, name: str, folders: tuple[str, ...]) -> Path | None:
        """Return the first regular file of that name in *folders*, links unresolved; None for an invalid file name."""

    def run(self, path: Path, env: Mapping[str, str], stdin: bytes, timeout: float) -> ProcessResult:
        """Run it to its end; code 5 when it cannot be started, 11 after *timeout* seconds."""


@dataclass(frozen=True)
class Children:
    """Runs executables as children of this process, with *environment* in addition to the call's variables."""

    environment: Mapping[str, str] = field(default_factory=dict)
    sleep: Callable[[float], None] = time.sleep

    def find(self, name: str, folders: tuple[str, ...]) -> Path | None:
        """Return the first regular file of that name in *folders*, links unresolved."""
        for candidate in candidate_paths(name, folders):
            try:
                if stat.S_ISREG(candidate.stat().st_mode):
                    return candidate
            except (OSError, ValueError):  # ValueError: the folder is not a valid path
                continue
        return None

    def run(self, path: Path, env: Mapping[str, str], stdin: bytes, timeout: float) -> ProcessResult:
        """Run it to its end in a session of its own, so that its children are killed with it."""
        process = self._start(path, {**self.environment, **env})
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired as cause:
            raise timeout_error(path, timeout) from cause
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                _close_pipes(process)
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


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    """Close the pipes of a killed process: one that it started in another session may hold their other ends."""
    try:
        process.communicate(timeout=_PIPE_TIMEOUT)
    except subprocess.TimeoutExpired:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        process.poll()  # reap it, if it has ended


def retry_while_busy(path: Path, start: Callable[[], T], sleep: Callable[[float], None]) -> T:
    """Return what *start* returns; retry while *path* is being replaced ("text file busy"), then code 5."""
    for last in (*[False] * (_BUSY_TRIES - 1), True):
        try:
            return start()
        except OSError as cause:
            if last or cause.errno != errno.ETXTBSY:
                raise start_error(path, cause) from cause
        sleep(_BUSY_PAUSE)
    raise AssertionError("the last try returns or raises")


def candidate_paths(name: str, folders: Iterable[str]) -> list[Path]:
    """Return the paths that an executable of that name may have: in a folder itself, never below or above it.

    None when *name* is not a plain file name; relative folders, which depend on the working directory, are left out.
    """
    if not names.is_plugin_type(name):
        return []
    return [Path(folder) / name for folder in folders if folder.startswith("/")]


def start_error(path: Path, cause: OSError) -> CniError:
    """Return the error for an executable that cannot be started."""
    return CniError(Code.IO, f"cannot execute {path}: {os.strerror(cause.errno or 0)}")


def timeout_error(path: Path, timeout: float) -> CniError:
    """Return the error for an executable that was killed after *timeout* seconds."""
    return CniError(
        Code.TRY_AGAIN,
        f"{path} took longer than {timeout:g} s and was ended",
        "raise 'execTimeout' if it is slow by nature",
    )
