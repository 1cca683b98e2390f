# SPDX-License-Identifier: Apache-2.0
"""Validate configs, definitions and annotations against their JSON Schemas; each problem has its path and the fix."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from multus_py.config import schema
from multus_py.config.delegate_schema import STANDARD
from multus_py.config.formats import FORMATS

Place = tuple[str | int, ...]
_FOLDER = Path(__file__).parent / "schemas"
_LENGTHS = {"minLength": "is too short", "maxLength": "is too long", "minItems": "has too few items"}
_TYPES = {
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


@dataclass(frozen=True)
class Problem:
    """One problem of a document at *path* (keys and indexes from the top); a *note* is not an error."""

    path: Place
    message: str
    fix: str = ""
    note: bool = False

    @property
    def where(self) -> str:
        """The path for people: plugins[0].ipam."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")


def problems(document: object, schema_name: str) -> list[Problem]:
    """Return the problems of *document*, sorted by path.

    *schema_name* is `networks` (the annotation's JSON form), `definition`, `config` (the plugin config), `daemon`, or
    `network`: a plugin's config or a list, whose plugins are validated against the schemas of their types. Plugins of
    other types are not validated.
    """
    found = list(_network(document) if schema_name == "network" else _validate(document, schema_name))
    if schema_name in ("config", "daemon") and isinstance(document, Mapping):
        delegates = document.get("delegates")
        for n, delegate in enumerate(delegates if isinstance(delegates, list) else ()):
            found += _below(("delegates", n), _network(delegate))
    # The validator reports each missing key separately, and each report becomes one problem for every missing key.
    return sorted(dict.fromkeys(found), key=lambda problem: [str(part) for part in problem.path])


def _network(document: object) -> Iterator[Problem]:
    if not (isinstance(document, Mapping) and "plugins" in document):
        yield from _plugin(document)
        return
    yield from _validate(document, "list")
    plugins = document["plugins"]
    for n, plugin in enumerate(plugins if isinstance(plugins, list) else ()):
        yield from _below(("plugins", n), _plugin(plugin))


def _plugin(config: object) -> Iterator[Problem]:
    yield from _validate(config, "plugin")
    if not isinstance(config, Mapping):
        return
    own = {key: value for key, value in config.items() if not _is_protocol(key) or key in ("type", "ipam")}
    yield from _validate(own, f"delegates/{config.get('type')}")
    ipam = config.get("ipam")
    if isinstance(ipam, Mapping):
        yield from _validate({"type": config.get("type"), "ipam": ipam}, f"delegates/{ipam.get('type')}")


def _below(path: Place, found: Iterable[Problem]) -> Iterator[Problem]:
    for problem in found:
        yield replace(problem, path=(*path, *problem.path))


def _is_protocol(key: object) -> bool:
    return key in STANDARD or (isinstance(key, str) and "/" in key and "." in key.partition("/")[0])


def _validate(document: object, schema_name: str) -> Iterator[Problem]:
    if schema_name not in schemas():
        return
    body = schemas()[schema_name]
    for error in Draft202012Validator(body, format_checker=_FORMAT_CHECKER).iter_errors(document):
        # `const` in a delegate's schema marks values that the executable handles: they are valid.
        if not (schema_name.startswith("delegates/") and error.validator == "const"):
            yield from _below(tuple(error.absolute_path), _described(error, str(body.get("title", schema_name))))


def _described(error: ValidationError, title: str) -> Iterator[Problem]:
    """Return the problems of one error of the validator; their paths are relative to its place."""
    rule = str(error.validator)
    value: Any = error.instance
    expected: Any = error.validator_value
    part: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    if rule == "additionalProperties":
        patterns = part.get("patternProperties", ())
        others = [key for key in value if not any(re.search(pattern, key) for pattern in patterns)]
        yield from _unknown_keys(others, part.get("properties", {}), title)
    elif rule == "required":
        meanings = part.get("properties", {})
        for key in expected:
            if key not in value:
                yield Problem((), f"{key!r} is missing", str(meanings.get(key, {}).get("description", "")))
    elif rule == "type":
        # Go takes null for an absent value, wherever a key may be absent.
        is_absent = value is None and bool(error.path) and isinstance(error.path[-1], str)
        yield Problem((), *_message(rule, expected, value, part), note=is_absent)
    else:
        yield Problem((), *_message(rule, expected, value, part))


def _message(rule: str, expected: Any, value: Any, part: Mapping[str, Any]) -> tuple[str, str]:
    """Return message and fix for a value that breaks the rule of the schema *part*."""
    shown, meaning = _shown(value), str(part.get("description", ""))
    if rule == "type":
        types = " or ".join(_TYPES[name] for name in ([expected] if isinstance(expected, str) else expected))
        return f"must be {types}, it is {shown}", meaning
    if rule in ("enum", "const"):
        allowed = [str(item) for item in (expected if rule == "enum" else [expected]) if item != ""]
        near = get_close_matches(str(value), allowed, 1)
        return f"{shown} is not one of {', '.join(allowed)}", f"did you mean {near[0]!r}?" if near else meaning
    if rule == "format":
        form = FORMATS[str(expected)]
        return f"{shown} is not {form.noun}", f"such as {form.example}"
    if rule in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        limit = {"minimum": "at least", "maximum": "at most"}.get(rule, "more than" if "Min" in rule else "less than")
        return f"must be {limit} {expected}, it is {shown}", meaning
    if rule in ("anyOf", "oneOf"):
        choices = [" and ".join(map(repr, choice["required"])) for choice in expected if "required" in choice]
        return f"needs {' or '.join(choices)}" if choices else f"{shown} has none of the forms allowed", meaning
    return f"{shown} {_LENGTHS.get(rule, 'is not allowed')}", meaning


def _unknown_keys(keys: Iterable[str], known: Mapping[str, Any], title: str) -> Iterator[Problem]:
    folded = {key.casefold(): key for key in known}
    for key in keys:
        if key in known or _is_protocol(key):
            continue
        # Keys are read without regard to case, as by Go's decoder.
        same = folded.get(str(key).casefold())
        near = [same] if same else get_close_matches(str(key), [*known, *STANDARD], 1, 0.75)
        message = f"{key!r} is not a key of {title}"
        fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        yield Problem((key,), message, fix, note=bool(same) or not near)


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."


@cache
def schemas() -> Mapping[str, Mapping[str, Any]]:
    """Return all schemas by name, `config`, `delegates/bridge`: those of files, and those of declared keys."""
    of_files = {
        path.relative_to(_FOLDER).with_suffix("").as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(_FOLDER.rglob("*.json"))
    }
    return {**of_files, **schema.generated()}


_FORMAT_CHECKER = FormatChecker(formats=())
for _name, _format in FORMATS.items():
    # An empty string counts as absent, as for Go's decoder; `required` states whether a key may be absent.
    _FORMAT_CHECKER.checks(_name)(
        lambda value, accepts=_format.accepts: not isinstance(value, str) or value == "" or accepts(value)
    )
