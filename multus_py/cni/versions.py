# SPDX-License-Identifier: Apache-2.0
"""Versions of the CNI specification: which are supported, how they compare, which verbs each has."""

from multus_py.cni.errors import CniError, Code

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = SUPPORTED[-1]

# A config without cniVersion is read as the first version (spec 0.2.0; libcni does the same).
DEFAULT = "0.1.0"

SINCE = {"ADD": "0.1.0", "DEL": "0.1.0", "VERSION": "0.1.0", "CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}


def resolve(version: object) -> str:
    """Return *version* when it is supported, DEFAULT when it is absent or empty; else raise code 1."""
    if version is None or version == "":
        return DEFAULT
    if isinstance(version, str) and version in SUPPORTED:
        return version
    raise CniError(
        Code.INCOMPATIBLE_VERSION, f"cniVersion {version!r} is not supported", f"supported: {', '.join(SUPPORTED)}"
    )


def at_least(version: str, floor: str) -> bool:
    """Tell whether the supported *version* is *floor* or newer."""
    return SUPPORTED.index(version) >= SUPPORTED.index(floor)


def has_verb(verb: str, version: str) -> bool:
    """Tell whether *verb* exists in *version*."""
    return at_least(version, SINCE[verb])
