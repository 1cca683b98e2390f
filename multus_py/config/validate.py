# SPDX-License-Identifier: Apache-2.0
"""What is wrong in a document that people wrote: each trouble names its place in the document and the fix."""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

from multus_py.cni import names
from multus_py.config.delegate_schema import STANDARD

Place = tuple[str | int, ...]
_FOLDER = Path(__file__).parent / "schemas"
_LENGTHS = {"minLength": "is too short", "maxLength": "is too long", "minItems": "has too few items"}


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong at *path* (keys and indexes from the top); a *note* is worth a look and no error."""

    path: Place
    message: str
    fix: str = ""
    note: bool = False

    @property
    def where(self) -> str:
        """The path for people: plugins[0].ipam."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")


def troubles(document: object, schema_name: str) -> list[Trouble]:
    """Return what is wrong with *document*, by place.

    *schema_name* is `networks` (the annotation's JSON form), `definition`, `config` (our own), `daemon`, or `network`:
    any plugin's config or list, whose plugins are then held against the schemas of their types. Plugins without one
    are their executables' business.
    """
    found = list(_network(document) if schema_name == "network" else _checked(document, schema_name))
    if schema_name in ("config", "daemon") and isinstance(document, Mapping):
        delegates = document.get("delegates")
        for n, delegate in enumerate(delegates if isinstance(delegates, list) else ()):
            found += _below(("delegates", n), _network(delegate))
    # The validator tells of each missing key on its own, and we of all of them each time.
    return sorted(dict.fromkeys(found), key=lambda trouble: [str(part) for part in trouble.path])


def _network(document: object) -> Iterator[Trouble]:
    if not (isinstance(document, Mapping) and "plugins" in document):
        yield from _plugin(document)
        return
    yield from _checked(document, "list")
    plugins = document["plugins"]
    for n, plugin in enumerate(plugins if isinstance(plugins, list) else ()):
        yield from _below(("plugins", n), _plugin(plugin))


def _plugin(config: object) -> Iterator[Trouble]:
    yield from _checked(config, "plugin")
    if not isinstance(config, Mapping):
        return
    own = {key: value for key, value in config.items() if not _protocol(key) or key in ("type", "ipam")}
    yield from _checked(own, f"delegates/{config.get('type')}")
    ipam = config.get("ipam")
    if isinstance(ipam, Mapping):
        yield from _checked({"type": config.get("type"), "ipam": ipam}, f"delegates/{ipam.get('type')}")


def _below(path: Place, found: Iterable[Trouble]) -> Iterator[Trouble]:
    for trouble in found:
        yield replace(trouble, path=(*path, *trouble.path))


def _protocol(key: object) -> bool:
    return key in STANDARD or (isinstance(key, str) and "/" in key and "." in key.partition("/")[0])


def _checked(document: object, schema_name: str) -> Iterator[Trouble]:
    if schema_name not in _schemas():
        return
    schema = _schemas()[schema_name]
    validator = Draft202012Validator(schema, registry=_registry(), format_checker=_FORMATS)
    for error in validator.iter_errors(document):
        path = tuple(error.absolute_path)
        # `const` in a plugin's schema tells what we leave to the executable: nothing is wrong with it.
        if not (schema_name.startswith("delegates/") and error.validator == "const"):
            yield from _below(path, _told(error, str(schema.get("title", schema_name))))


def _told(error: ValidationError, title: str) -> Iterator[Trouble]:
    """Say in words what one error of the validator is about; the paths are relative to its place."""
    rule = str(error.validator)
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    value: Any = error.instance
    wanted: Any = error.validator_value
    meant = str(schema.get("description", ""))
    if rule in ("additionalProperties", "unevaluatedProperties"):
        patterns = schema.get("patternProperties", ())
        rest = [key for key in value if not any(re.search(pattern, key) for pattern in patterns)]
        yield from _unknown_keys(rest, _properties(schema), title)
    elif rule == "required":
        missing = [key for key in wanted if key not in value]
        yield from (Trouble((), f"{key!r} is missing", _meaning(schema, key)) for key in missing)
    elif rule == "type":
        expected = " or ".join(_TYPES[name] for name in ([wanted] if isinstance(wanted, str) else wanted))
        # Go takes null for "nothing said", wherever a key may be absent.
        absent = value is None and bool(error.path) and isinstance(error.path[-1], str)
        yield Trouble((), f"must be {expected}, it is {_shown(value)}", meant, note=absent)
    elif rule in ("enum", "const"):
        allowed = [str(item) for item in (wanted if rule == "enum" else [wanted]) if item != ""]
        near = get_close_matches(str(value), allowed, 1)
        yield Trouble(
            (), f"{_shown(value)} is not one of {', '.join(allowed)}", f"did you mean {near[0]!r}?" if near else meant
        )
    elif rule == "format":
        yield Trouble(
            (), f"{_shown(value)} is not {_FORMAT_WORDS.get(str(wanted), (str(wanted), ''))[0]}", _example(wanted)
        )
    elif rule in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        limit = {"minimum": "at least", "maximum": "at most"}.get(rule, "more than" if "Min" in rule else "less than")
        yield Trouble((), f"must be {limit} {wanted}, it is {_shown(value)}", meant)
    elif rule in ("anyOf", "oneOf"):
        choices = [" and ".join(map(repr, choice["required"])) for choice in wanted if "required" in choice]
        yield Trouble(
            (), f"needs {' or '.join(choices)}" if choices else f"{_shown(value)} has none of the forms allowed", meant
        )
    else:
        yield Trouble((), f"{_shown(value)} {_LENGTHS.get(rule, 'is not allowed')}", meant)


def _unknown_keys(keys: Iterable[str], known: Mapping[str, Any], title: str) -> Iterator[Trouble]:
    folded = {key.casefold(): key for key in known}
    for key in keys:
        if key in known or _protocol(key):
            continue
        # Go's decoder takes a key in any case; so do we.
        same = folded.get(str(key).casefold())
        near = [same] if same else get_close_matches(str(key), [*known, *STANDARD], 1, 0.75)
        message = f"{key!r} is not a key of {title}"
        fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        yield Trouble((key,), message, fix, note=bool(same) or not near)


def _properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that a schema knows, those of the schemas that it refers to included."""
    found = dict(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        if "$ref" in part:
            found |= _properties(_schemas()[part["$ref"].removesuffix(".json")])
    return found


def _meaning(schema: Mapping[str, Any], key: str) -> str:
    about = _properties(schema).get(key, {})
    return str(about.get("description", "")) if isinstance(about, Mapping) else ""


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."


def _example(wanted: object) -> str:
    example = _FORMAT_WORDS.get(str(wanted), ("", ""))[1]
    return f"such as {example}" if example else ""


@cache
def _schemas() -> Mapping[str, Mapping[str, Any]]:
    """Read all schemas: `config`, `delegates/bridge`."""
    return {
        path.relative_to(_FOLDER).with_suffix("").as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(_FOLDER.rglob("*.json"))
    }


@cache
def _registry() -> Registry[Any]:
    return Registry().with_resources(
        [(f"{name}.json", Resource.from_contents(dict(body))) for name, body in _schemas().items()]
    )


_TYPES = {
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


def _is_address(text: str) -> bool:
    return "/" not in text and _is_cidr(text)


def _is_cidr(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return "%" not in text and text.partition("/")[2].isdigit() == ("/" in text)


_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")
_FORMAT_WORDS = {
    "ip": ("an IP address", "10.1.2.3"),
    "ip-or-cidr": ("an IP address", "10.1.2.3/24"),
    "cidr": ("a network with its prefix length", "10.1.0.0/16 (0.0.0.0/0 is everything)"),
    "mac": ("a hardware address of 6 bytes, or of 20 (InfiniBand)", "02:00:00:00:00:01"),
    "guid": ("an InfiniBand GUID of 8 bytes", "11:22:33:44:55:66:77:88"),
    "label": ("a DNS label", "team-a"),
    "subdomain": ("the name of an object", "net-a"),
    "interface": ("an interface name", "net1 (at most 15 bytes)"),
    "network": ("the name of a network", "net-a"),
    "plugin-type": ("the file name of a plugin", "bridge"),
}
_FORMAT_TESTS: Mapping[str, Callable[[str], bool]] = {
    "ip": _is_address,
    "ip-or-cidr": _is_cidr,
    "cidr": lambda text: "/" in text and _is_cidr(text),
    "mac": names.is_mac,
    "guid": names.is_guid,
    "label": names.is_label,
    "subdomain": names.is_subdomain,
    "interface": lambda text: not names.interface_problem(text),
    "network": lambda text: bool(_IDENTIFIER.match(text)),
    "plugin-type": lambda text: bool(_IDENTIFIER.match(text)) or text.startswith("_"),
}
_FORMATS = FormatChecker(formats=())
for _name, _test in _FORMAT_TESTS.items():
    # Empty counts as absent, as Go's decoder has it; whether it may be absent is said by `required`.
    _FORMATS.checks(_name)(lambda value, test=_test: not isinstance(value, str) or value == "" or test(value))
