# SPDX-License-Identifier: Apache-2.0
"""Files in folders that others read all the time: whole or not at all, set aside and given back under their names."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from multus_py.cni.errors import CniError, Code

# No runtime reads a conf with this ending (they take .conf, .conflist, .json), no runtime calls an executable with it.
BACKUP_SUFFIX = ".before-multus-py"


def replace(path: Path, content: bytes, mode: int, prove: Callable[[Path], None] | None = None) -> None:
    """Write *path* whole or not at all (code 5): a reader sees the old file or the new one, also one that runs the old.

    *prove* is called with the finished file before it gets its name, and raises when it is no good.
    """
    temporary = ""
    try:
        # A leading dot and no known suffix: no runtime reads or calls it.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if prove:
            prove(Path(temporary))
        Path(temporary).rename(path)
        temporary = ""
        _sync_folder(path.parent)
    except OSError as cause:
        raise CniError(
            Code.IO, f"cannot write {path}: {cause.strerror}", "is the folder there, on a writable disk with room left?"
        ) from cause
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def has_content(path: Path, content: bytes, mode: int) -> bool:
    """Tell whether *path* is a file with this content and these permissions."""
    try:
        there = path.stat()
        return there.st_size == len(content) and there.st_mode & 0o777 == mode and path.read_bytes() == content
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file; one that is gone already is success (code 5 otherwise)."""
    try:
        path.unlink(missing_ok=True)
    except OSError as cause:
        raise CniError(Code.IO, f"cannot remove {path}: {cause.strerror}", "run as root, on a writable disk") from cause


def move_to_backup(path: Path) -> Path:
    """Rename *path* to a name that no runtime reads, replacing an older backup; return that name."""
    target = _backup_path(path)
    _rename(path, target, "set aside")
    return target


def copy_to_backup(path: Path) -> Path:
    """Copy *path* to a name that no runtime calls; return that name."""
    target = _backup_path(path)
    draft = path.with_name(f".{path.name}{BACKUP_SUFFIX}")
    try:
        draft.unlink(missing_ok=True)
        os.link(path, draft)
        draft.rename(target)
    except OSError as cause:
        raise CniError(Code.IO, f"cannot keep {path} as {target.name}: {cause.strerror}") from cause
    return target


def restore_backup(path: Path) -> bool:
    """Put back what was set aside, in place of what has its name now; False when nothing was."""
    source = _backup_path(path)
    if not source.is_file():
        return False
    _rename(source, path, "give back")
    return True


def list_backups(folder: Path) -> list[Path]:
    """Return the former names of what was set aside in *folder*."""
    try:
        return sorted(
            path.with_name(path.name.removesuffix(BACKUP_SUFFIX)) for path in folder.glob(f"*{BACKUP_SUFFIX}")
        )
    except OSError as cause:
        raise CniError(Code.IO, f"cannot read {folder}: {cause.strerror}") from cause


def _backup_path(path: Path) -> Path:
    return path.with_name(path.name + BACKUP_SUFFIX)


def _rename(source: Path, target: Path, doing: str) -> None:
    try:
        source.rename(target)
        _sync_folder(target.parent)
    except OSError as cause:
        raise CniError(
            Code.IO, f"cannot {doing} {source} as {target.name}: {cause.strerror}", "run as root, on a writable disk"
        ) from cause


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
