# SPDX-License-Identifier: Apache-2.0
"""DELs that the shim could not hand over, one file each, in the order they came; read and removed here."""

import base64
import binascii
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from multus_py.cni.errors import CniError, Code

log = logging.getLogger("multus_py")

_DAMAGED = ".damaged"


@dataclass(frozen=True)
class Tombstone:
    """One DEL as the runtime made it: environment and standard input, and when, in seconds since the epoch."""

    path: Path
    env: dict[str, str]
    stdin: bytes
    time: float

    def remove(self) -> None:
        """The DEL was confirmed."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Spool:
    """The folder that shims write to while the daemon is away."""

    folder: Path

    def tombstones(self) -> Iterator[Tombstone]:
        """Yield what is there, oldest first; a file that cannot be read is set aside and logged."""
        for path in self._files():
            try:
                yield decode(path.read_bytes(), path)
            except FileNotFoundError:
                continue
            except CniError as error:
                log.warning("spool: %s: %s; it is kept as %s", path.name, error, path.name + _DAMAGED)
                path.rename(path.with_name(path.name + _DAMAGED))

    def __len__(self) -> int:
        return len(self._files())

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
        except FileNotFoundError:
            return []


def decode(text: bytes, path: Path) -> Tombstone:
    """Read a tombstone: `env`, `config` in base64 and `time` (code 6 when it is none)."""
    env, stdin = request(text)
    time = json.loads(text).get("time")
    if isinstance(time, bool) or not isinstance(time, int | float):
        raise CniError(Code.DECODE, "the tombstone has no 'time'")
    return Tombstone(path, env, stdin, time)


def request(text: bytes) -> tuple[dict[str, str], bytes]:
    """Read the body of a call as shims write it: `{"env": {...}, "config": "<base64>"}`; code 6 when it is none."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise CniError(Code.DECODE, f"the request is not JSON: {cause}") from cause
    env = body.get("env") if isinstance(body, dict) else None
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise CniError(Code.DECODE, "the request has no 'env' of strings")
    try:
        return env, base64.b64decode(body.get("config") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as cause:
        raise CniError(Code.DECODE, f"the request's 'config' is not base64: {cause}") from cause
