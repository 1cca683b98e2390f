# SPDX-License-Identifier: Apache-2.0
"""The spool: one file for each DEL that the shim could not send to the daemon, in order; read and removed here."""

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
    """One DEL as the runtime sent it: environment, standard input and time.

    *time* is in seconds since the epoch. *boot* is the boot id and *since* the seconds since that boot
    (CLOCK_BOOTTIME): "" and 0 from shims that did not write them.
    """

    path: Path
    env: dict[str, str]
    stdin: bytes
    time: float
    boot: str = ""
    since: float = 0.0

    def remove(self) -> None:
        """Remove the file: the DEL succeeded."""
        with suppress(OSError):  # a read-only file system: it is replayed again, DEL is idempotent
            self.path.unlink(missing_ok=True)

    def is_older(self, records: Journal, call: Call) -> bool:
        """Tell whether the sandbox was attached again since: some runtimes reuse a container id."""
        try:
            entry = records.read(call.container_id, call.ifname)
        except CniError:
            return False
        if not entry.since or entry.boot != journal_entry.boot_id():
            return False  # an entry of an earlier build or boot is not newer
        if self.boot:
            return self.boot != entry.boot or self.since < entry.since
        return self.time < time.time() - journal_entry.uptime() + entry.since


@dataclass(frozen=True)
class Spool:
    """The folder that shims write to while the daemon does not answer."""

    folder: Path

    def read(self, path: Path) -> Tombstone | None:
        """Return the tombstone of a file; None when it is gone, or is no tombstone: then it is renamed and logged.

        OSError when it cannot be read: it may be a valid DEL.
        """
        try:
            return decode(small_files.read(path), path)
        except FileNotFoundError:
            return None
        except (IsADirectoryError, CniError) as error:
            log.warning("spool: %s: %s; it is kept as %s", path.name, error, path.name + _DAMAGED)
            with suppress(OSError):  # the next read tries again
                path.rename(path.with_name(path.name + _DAMAGED))
            return None

    def __len__(self) -> int:
        return len(self.files())

    def files(self) -> list[Path]:
        """Return the files of the tombstones, oldest first."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
        except OSError:
            return []


def decode(text: bytes, path: Path) -> Tombstone:
    """Read a tombstone: `env`, `config` in base64, `time`, and `boot` and `since` (code 6 when it is not one)."""
    env, stdin = request(text)
    body = json.loads(text)
    when, boot, since = body.get("time"), body.get("boot", ""), body.get("since", 0.0)
    if not _is_number(when) or not _is_number(since) or not isinstance(boot, str):
        raise CniError(Code.DECODE, "the tombstone has no 'time', or no usable 'boot' and 'since'")
    if boot and boot != journal_entry.boot_id():
        env = {**env, "CNI_NETNS": ""}  # namespaces end with the boot: the path may lead to another one
    return Tombstone(path, env, stdin, when, boot, since)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def request(text: bytes) -> tuple[dict[str, str], bytes]:
    """Read the body of a call as shims write it: `{"env": {...}, "config": "<base64>"}`; code 6 when it is not one."""
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
