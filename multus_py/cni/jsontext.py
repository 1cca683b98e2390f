# SPDX-License-Identifier: Apache-2.0
"""Parse JSON that people write: strict, of bounded nesting, each error with its place in the text."""

import json
import math
import re
from typing import Any

DEPTH_LIMIT = 100  # levels of nesting, also for YAML
TOO_DEEP = f"more than {DEPTH_LIMIT} levels of nesting"
# What the parser refuses without a place, and strings, in which it must not be searched for.
_TOKENS = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|NaN|-?Infinity|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?', re.DOTALL
)


def parse(text: bytes | str) -> Any:
    """Parse a JSON text; every error is a `JSONDecodeError`, with line and column.

    The result can be serialised again: no NaN, no number too large for a float, and U+FFFD in place of an unpaired
    surrogate, as in Go's decoder (a string with one is not valid in a path or a log).
    """
    # Counted first: hardly any text has so many brackets that its depth must be measured.
    if _brackets(text) > DEPTH_LIMIT:
        _refuse_depth(_decoded(text))
    try:
        body = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as cause:
        raise _located_error(text, cause) from cause
    # Bytes, too: Python's parser accepts an unpaired surrogate in UTF-8.
    escaped = not text.isascii() or (b"\\u" in text if isinstance(text, bytes) else "\\u" in text)
    return _replace_surrogates(body) if escaped else body


def _replace_surrogates(value: Any) -> Any:
    """Return *value* with U+FFFD for each unpaired surrogate."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    return [_replace_surrogates(item) for item in value] if isinstance(value, list) else value


def _brackets(text: bytes | str) -> int:
    return text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")


def _decoded(text: bytes | str) -> str:
    return text if isinstance(text, str) else text.decode(json.detect_encoding(text), "replace")


def _refuse_depth(text: str) -> None:
    depth = 0
    for token in _TOKENS.finditer(text):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth > DEPTH_LIMIT:
            raise json.JSONDecodeError(TOO_DEEP, text, token.start())


def _located_error(text: bytes | str, cause: Exception) -> json.JSONDecodeError:
    """Return an error of the parser that has no place, with the place of its reason."""
    if isinstance(cause, UnicodeDecodeError):
        before = cause.object[: cause.start].decode(cause.encoding, "replace")
        return json.JSONDecodeError(f"not {cause.encoding}: {cause.reason}", _decoded(cause.object), len(before))
    decoded = _decoded(text)
    for token in _TOKENS.finditer(decoded):
        if token[0].endswith(("NaN", "Infinity")):
            return json.JSONDecodeError(f"JSON has no {token[0]}", decoded, token.start())
        if len(token[0]) > 4000 and token[0].lstrip("-").isdigit():
            return json.JSONDecodeError("more digits than a number can have", decoded, token.start())
        if token[0][-1].isdigit() and math.isinf(float(token[0])):
            return json.JSONDecodeError(f"the number {token[0]:.40} is too large", decoded, token.start())
    return json.JSONDecodeError(str(cause), decoded, 0)


def _refuse(name: str) -> None:
    raise ValueError(name)


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value
