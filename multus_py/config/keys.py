# SPDX-License-Identifier: Apache-2.0
"""Config keys, each declared once: the parser, the JSON Schema, lint and the reference pages read the declaration.

An attribute of a frozen dataclass declares the key that it is read from: `cni_dir: Path = key("cniDir", PATH, ...)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from multus_py.cni import versions
from multus_py.cni.fields import Fields, fold

# Who reads a key.
PLUGIN, DAEMON, SHIM, INSTALL, RUNTIME = "plugin", "daemon", "shim", "install", "runtime"


class Kind(NamedTuple):
    """The type of a value.

    *label* names it on the reference pages, *schema* is its JSON Schema, *read* returns the value of a key that the
    object has (None: it counts as absent) or raises `FieldError`. *members* are the keys of an object, or of each
    object of a list.
    """

    label: str
    schema: Mapping[str, Any]
    read: Callable[[Fields, str], Any]
    unit: str = ""
    members: tuple["Key", ...] = ()


class Key(NamedTuple):
    """One key of an object that people write.

    *limits* are rules of the schema in addition to the kind's. *format* is one of `FORMATS`; for
    a list it is that of its items. *default* is the attribute's default, *default_text* replaces it for people where it
    is not a constant. *of_protocol*: the runtime sets it, the daemon's config file never replaces it. *noun* and *hint*
    are the words of the parser's error when the format is wrong.
    """

    name: str
    kind: Kind
    meaning: str
    readers: tuple[str, ...] = ()
    unit: str = ""
    limits: tuple[tuple[str, Any], ...] = ()
    format: str = ""
    default: Any = None
    default_text: str = ""
    required: bool = False
    of_protocol: bool = False
    noun: str = ""
    hint: str = ""
    since: str = "0.1.0"


def key(
    name: str, kind: Kind, meaning: str, *readers: str, default: Any = MISSING, alias: Key | None = None, **more: Any
) -> Any:
    """Declare an attribute that is read from the key *name*; without *default* the attribute has none.

    *alias* is a second key, read when the first is absent or empty.
    """
    declared = Key(name, kind, meaning, readers, default=None if default is MISSING else default, **more)
    return field(default=default, metadata={"keys": (declared, alias) if alias else (declared,)})


@cache
def attributes(cls: type) -> Mapping[str, tuple[Key, ...]]:
    """Return the keys of each attribute of a dataclass that is read from one, the first before its alias."""
    return {each.name: each.metadata["keys"] for each in fields(cls) if "keys" in each.metadata}


def declared(cls: type) -> tuple[Key, ...]:
    """Return the keys that the attributes of a dataclass are read from."""
    return tuple(each for keys in attributes(cls).values() for each in keys)


def read(cls: type, body: Fields) -> dict[str, Any]:
    """Return the attributes of a dataclass whose keys *body* has; the others keep their defaults.

    Keys are found as Go's decoder finds them (`Fields.get`). A wrong value raises `FieldError`.
    """
    by_name = _by_name(cls)
    found = {}
    for name, given in body.body.items():
        if given is None or (entry := by_name.get(name) or by_name.get(fold(name))) is None:
            continue
        attribute, readers = entry
        for key_name, read_value in readers:
            # In another spelling the exact one counts first, and only one of a key and its alias may be there.
            if (name == key_name or body.get(key_name) is not None) and (
                value := read_value(body, key_name)
            ) is not None:
                found[attribute] = value
                break
    return found


@cache
def _by_name(cls: type) -> Mapping[str, tuple[str, tuple[tuple[str, Callable[[Fields, str], Any]], ...]]]:
    """Return attribute and readers by the spelling of each key, exact and case-folded."""
    entries = {
        each.name: (attribute, tuple((every.name, every.kind.read) for every in keys))
        for attribute, keys in attributes(cls).items()
        for each in keys
    }
    return {fold(name): entry for name, entry in entries.items()} | entries


def check(members: tuple[Key, ...], body: Fields) -> None:
    """Raise `FieldError` for the first key that is required and missing, or has a wrong value."""
    for each in members:
        if each.required or body.get(each.name) is not None:
            each.kind.read(body, each.name)


def choice(*values: str) -> Kind:
    """Return the kind of a string that is one of *values*."""

    def read_choice(body: Fields, name: str) -> str:
        if (value := body.text(name)) not in values:
            raise body.error(name, " or ".join(values))
        return value

    return Kind("string", {"enum": list(values)}, read_choice)


def record(cls: type, *others: Key) -> Kind:
    """Return the kind of an object that is read into a dataclass; *others* are keys without an attribute."""

    def read_record(body: Fields, name: str) -> Any:
        return cls(**read(cls, Fields(body.table(name), f"{body.where}: {name}")))

    return Kind("object", {"type": "object"}, read_record, members=(*others, *declared(cls)))


def _text(body: Fields, name: str) -> str | None:
    return body.text(name) or None


def _path(body: Fields, name: str) -> Path | None:
    return Path(text) if (text := body.text(name)) else None


def _set(body: Fields, name: str) -> frozenset[str]:
    return frozenset(body.texts(name) or ())


_SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": 86400}
_STRINGS = {"type": "array", "items": {"type": "string"}}
# An empty string, and 0 where 1 is the least, count as absent: Go's decoder does not tell them apart.
TEXT = Kind("string", {"type": "string"}, _text)
PATH = Kind("path", {"type": "string"}, _path)
PATH_TEXT = Kind("path", {"type": "string"}, _text)
FLAG = Kind("boolean", {"type": "boolean"}, Fields.flag)
NUMBER = Kind("integer", {"type": "integer", "minimum": 0}, Fields.number)
COUNT = Kind("integer", {"type": "integer", "minimum": 1}, lambda body, name: body.number(name) or None)
SECONDS = Kind("number", _SECONDS, lambda body, name: body.seconds(name, 0.0), unit="s")
TEXTS = Kind("list of strings", _STRINGS, Fields.texts)
TEXT_SET = Kind("list of strings", _STRINGS, _set)
OBJECT = Kind("object", {"type": "object"}, lambda body, name: body.table(name) or None)
OBJECTS = Kind("list of objects", {"type": "array", "items": {"type": "object"}}, Fields.tables)
ADDRESSES = Kind("list of strings", _STRINGS, Fields.addresses)
CNI_VERSION = Kind("string", {"enum": list(versions.SUPPORTED)}, lambda body, name: versions.resolve(body.get(name)))
