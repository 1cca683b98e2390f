# SPDX-License-Identifier: Apache-2.0
"""DELs that the shim could not hand over, one file each, in the order they came; read and removed here."""

import base64
import binascii
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from multus_py.cni import jsontext
from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.kernel import small_files
from multus_py.state import journal_entry
from multus_py.state.journal import Journal

log = logging.getLogger("multus_py")

_DAMAGED = ".damaged"


@dataclass(frozen=True)
class Tombstone:
    """One DEL as the runtime made it: environment and standard input, and when.

    *time* is in seconds since the epoch. *boot* names the kernel's life and *since* the seconds since it began, by the
    clock that nobody sets: "" and 0 from shims that did not write them.
    """

    path: Path
    env: dict[str, str]
    stdin: bytes
    time: float
    boot: str = ""
    since: float = 0.0

    def remove(self) -> None:
        """The DEL was confirmed."""
        with suppress(OSError):  # read-only or damaged: it is tried again, DEL may come twice
            self.path.unlink(missing_ok=True)

    def is_older(self, book: Journal, call: Call) -> bool:
        """Tell whether the sandbox was attached anew since: some runtimes use a container id again."""
        try:
            entry = book.read(call.container_id, call.ifname)
        except CniError:
            return False
        if not entry.since or entry.boot != journal_entry.boot_id():
            return False  # a page of an earlier build or boot is no newer attachment
        if self.boot:
            return self.boot != entry.boot or self.since < entry.since
        return self.time < time.time() - journal_entry.uptime() + entry.since


@dataclass(frozen=True)
class Spool:
    """The folder that shims write to while the daemon is away."""

    folder: Path

    def read(self, path: Path) -> Tombstone | None:
        """Return what a file holds; None when it is gone, or is no tombstone: then it is set aside and logged.

        OSError when it cannot be read: it may be a DEL like any other.
        """
        try:
            return decode(small_files.read(path), path)
        except FileNotFoundError:
            return None
        except (IsADirectoryError, CniError) as error:
            log.warning("spool: %s: %s; it is kept as %s", path.name, error, path.name + _DAMAGED)
            with suppress(OSError):  # the next look tries again
                path.rename(path.with_name(path.name + _DAMAGED))
            return None

    def __len__(self) -> int:
        return len(self.files())

    def files(self) -> list[Path]:
        """Return the tombstones' files, oldest first."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
        except OSError:
            return []


def decode(text: bytes, path: Path) -> Tombstone:
    """Read a tombstone: `env`, `config` in base64, `time`, and `boot` and `since` (code 6 when it is none)."""
    env, stdin = request(text)
    body = json.loads(text)
    when, boot, since = body.get("time"), body.get("boot", ""), body.get("since", 0.0)
    if not _is_number(when) or not _is_number(since) or not isinstance(boot, str):
        raise CniError(Code.DECODE, "the tombstone has no 'time', or no usable 'boot' and 'since'")
    if boot and boot != journal_entry.boot_id():
        env = {**env, "CNI_NETNS": ""}  # no namespace outlives its boot: a path that leads to one leads to another's
    return Tombstone(path, env, stdin, when, boot, since)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def request(text: bytes) -> tuple[dict[str, str], bytes]:
    """Read the body of a call as shims write it: `{"env": {...}, "config": "<base64>"}`; code 6 when it is none."""
    try:
        body = jsontext.parse(text)
    except (ValueError, RecursionError) as cause:
        raise CniError(Code.DECODE, f"the request is not JSON: {cause}") from cause
    env = body.get("env") if isinstance(body, dict) else None
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise CniError(Code.DECODE, "the request has no 'env' of strings")
    try:
        return env, base64.b64decode(body.get("config") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as cause:
        raise CniError(Code.DECODE, f"the request's 'config' is not base64: {cause}") from cause
