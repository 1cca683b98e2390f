# SPDX-License-Identifier: Apache-2.0
"""Config keys that a native delegate does not support. Every ADD asks for them: jsonschema is not imported."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Keys of the protocol (CNI spec 1.1.0, sections 1 and 3, CONVENTIONS.md): every plugin accepts them.
STANDARD = frozenset(
    ("cniVersion", "cniVersions", "name", "type", "capabilities", "runtimeConfig", "prevResult", "args", "ipam", "dns")
)
# Added to the config of every plugin of a network with a device, as multus-cni does.
_DEVICE = ("deviceID", "pciBusID")
_FOLDED = frozenset(key.casefold() for key in (*STANDARD, *_DEVICE))


_FOLDER = Path(__file__).parent / "schemas" / "delegates"


def types() -> list[str]:
    """Return the types of the native delegates that are part of this package."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load(plugin_type: str) -> dict[str, Any]:
    """Read the JSON Schema of a native delegate's config."""
    text = (_FOLDER / f"{plugin_type}.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def unknown(config: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return the JSON paths of keys in *config* that *schema* does not have, or whose `const` is another value.

    It walks `properties`, `additionalProperties`, `items` and `const`, and finds keys as Go's decoder does: exactly,
    then without regard to case. Keys of the protocol and keys of a domain (`cni.dev/attachments`) are always supported.
    """
    return list(_unknown(config, schema, ""))


def _unknown(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _unknown_keys(value, schema, path)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for n, item in enumerate(value):
            yield from _unknown(item, schema["items"], f"{path}[{n}]")
    elif "const" in schema and value is not None and value != schema["const"]:
        yield path


def _unknown_keys(value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    known = schema.get("properties", {})
    rest = schema.get("additionalProperties", True)
    for key, item in value.items():
        part = known.get(key)
        if part is None and key in STANDARD and not path:
            continue
        if part is None:
            part = next((found for name, found in known.items() if name.casefold() == key.casefold()), None)
        if part is None and isinstance(rest, Mapping):
            part = rest
        if part is not None:
            yield from _unknown(item, part, f"{path}.{key}" if path else key)
        elif rest is False and (path or not _is_always_supported(key)):
            yield f"{path}.{key}" if path else key


def _is_always_supported(key: str) -> bool:
    return key.casefold() in _FOLDED or ("/" in key and "." in key.partition("/")[0])
