# SPDX-License-Identifier: Apache-2.0
"""What is wrong in a document that people wrote: each trouble names its place in the document and the fix."""

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
    if schema_name not in schemas():
        return
    schema = schemas()[schema_name]
    validator = Draft202012Validator(schema, format_checker=_FORMAT_CHECKER)
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
    if rule == "additionalProperties":
        patterns = schema.get("patternProperties", ())
        rest = [key for key in value if not any(re.search(pattern, key) for pattern in patterns)]
        yield from _unknown_keys(rest, schema.get("properties", {}), title)
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
        form = FORMATS[str(wanted)]
        yield Trouble((), f"{_shown(value)} is not {form.noun}", f"such as {form.example}")
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


def _meaning(schema: Mapping[str, Any], key: str) -> str:
    about = schema.get("properties", {}).get(key, {})
    return str(about.get("description", "")) if isinstance(about, Mapping) else ""


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


_TYPES = {
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


_FORMAT_CHECKER = FormatChecker(formats=())
for _name, _format in FORMATS.items():
    # An empty string counts as absent, as for Go's decoder; `required` states whether a key may be absent.
    _FORMAT_CHECKER.checks(_name)(
        lambda value, accepts=_format.accepts: not isinstance(value, str) or value == "" or accepts(value)
    )
