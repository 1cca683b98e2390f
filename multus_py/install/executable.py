# SPDX-License-Identifier: Apache-2.0
"""What a runtime starts for us: a launcher of this Python's plugin process, or the shim that talks to the daemon."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from multus_py.cni.errors import CniError, Code
from multus_py.cni.executables import Children
from multus_py.config.plugin import OUR_TYPES
from multus_py.install import files, shim

_LAUNCHER_MARK = b"multus-py launcher"
_SHIM_MARK = b"hands CNI calls to the multus-py daemon"  # the shim prints it when it is started by hand
_START = "import sys; from multus_py.entry.plugin import main; sys.exit(main())"
# Linux reads 256 bytes of a script's first line since 5.1, 128 before (include/uapi/linux/binfmts.h).
_SHEBANG_MAX = 127
_PROBE_SECONDS = 30
_MODE = 0o755


@dataclass(frozen=True)
class Program:
    """An executable's content; *advice* is for the case that it does not answer when it is tried out.

    *runs_here* False: it is not tried, for it is another machine's.
    """

    content: bytes
    advice: str
    runs_here: bool = True


def launcher(interpreter: str = "") -> Program:
    """Return the script that runs the plugin with *interpreter*, this Python by default."""
    interpreter = interpreter or sys.executable
    if not interpreter:
        raise CniError(Code.INTERNAL, "cannot write a launcher: this Python does not know its own path", "use a venv")
    advice = f"{interpreter} must be able to import multus_py without PYTHONPATH: install the package into it"
    return Program(launcher_text(interpreter).encode(), advice)


def shim_for(machine: str | None = None) -> Program:
    """Return the shim for *machine* (as `uname -m` says it), this one's by default; code 5 when it was not built."""
    path = shim.path(machine)
    return Program(path.read_bytes(), f"{path} was built for another machine or is damaged", path == _own_shim())


def _own_shim() -> Path | None:
    try:
        return shim.path()
    except CniError:
        return None


def launcher_text(interpreter: str) -> str:
    """Return the script that runs the plugin with *interpreter*, isolated from the caller's environment."""
    mark = _LAUNCHER_MARK.decode()
    shebang = f"#!{interpreter} -I"
    if len(shebang) <= _SHEBANG_MAX and not any(sign.isspace() for sign in interpreter):
        return f"{shebang}\n# {mark}\n{_START}\n"
    command = shlex.join([interpreter, "-I", "-c", _START])
    return f'#!/bin/sh\n# {mark}\nexec {command} "$@"\n'


def is_ours(path: Path) -> bool:
    """Tell whether a file is a launcher or shim of any release of ours."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return _LAUNCHER_MARK in content[:1024] or (content.startswith(b"\x7fELF") and _SHIM_MARK in content)


def require_free_name(path: Path) -> None:
    """Refuse a name that another plugin has; multus-cni's own names may be taken over."""
    if path.is_dir():
        raise CniError(Code.IO, f"{path} is a folder", "choose another --name")
    if path.name not in OUR_TYPES and path.exists() and not is_ours(path):
        raise CniError(
            Code.INVALID_CONFIG, f"{path} exists and is another plugin's executable", "choose another --name"
        )


def install(program: Program, path: Path) -> bool:
    """Put the program at *path*, which may run meanwhile; False when it is there already.

    A file of multus-cni under that name is kept as a backup.
    """
    if files.has_content(path, program.content, _MODE):
        return False
    require_free_name(path)
    if path.is_file() and not is_ours(path):
        files.copy_to_backup(path)
    files.replace(path, program.content, _MODE, lambda draft: _prove(draft, program) if program.runs_here else None)
    return True


def _prove(draft: Path, program: Program) -> None:
    """Ask the program for VERSION with nothing else in its environment, as the poorest runtime would."""
    try:
        done = Children().run(draft, {"CNI_COMMAND": "VERSION"}, b"{}", _PROBE_SECONDS)
    except CniError as cause:
        raise CniError(
            cause.code, f"the executable does not start: {cause.msg}", "is the disk mounted noexec?"
        ) from cause
    if done.status or b"supportedVersions" not in done.stdout:
        output = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise CniError(
            Code.INTERNAL,
            f"the executable does not answer VERSION: {output[-1] if output else f'exit status {done.status}'}",
            program.advice,
        )
