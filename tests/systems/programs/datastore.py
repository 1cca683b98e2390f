# SPDX-License-Identifier: Apache-2.0
"""What the real systems keep in a cluster or in the memory of an agent: state of their pods, and leased addresses."""

from collections.abc import Iterator
from pathlib import Path

_DATASTORE = Path("/run/datastore")


def kept(system: str) -> Path:
    """Return the folder of what a system keeps about its pods outside of this node's disk."""
    folder = _DATASTORE / system
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lease(system: str, key: str, choices: Iterator[str]) -> str:
    """Return the address of *key*: the one that it has, else the first that nobody has."""
    folder = kept(system)
    mine = folder / key
    if not mine.exists():
        taken = {path.read_text() for path in folder.iterdir()}
        mine.write_text(next(address for address in choices if address not in taken))
    return mine.read_text()


def release(system: str, key: str) -> None:
    """Free the address of *key*."""
    (kept(system) / key).unlink(missing_ok=True)
