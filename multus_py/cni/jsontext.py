# SPDX-License-Identifier: Apache-2.0
"""JSON that people write: strict, of bounded nesting, and whatever is refused is refused at a place of the text."""

import json
import math
import re
from typing import Any

DEPTH_LIMIT = 100  # levels of nesting: of every text that people write, YAML too
TOO_DEEP = f"more than {DEPTH_LIMIT} levels of nesting"
# What the parser refuses without saying where, and what it must not be looked for in.
_TOKENS = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|NaN|-?Infinity|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?', re.DOTALL
)


def parse(text: bytes | str) -> Any:
    """Parse a JSON text; whatever keeps it from being read is a `JSONDecodeError`, which knows the line and column.

    What comes out can be written again, for everybody: no NaN, no number too large for a float, and U+FFFD in place of
    half a surrogate pair, as Go's decoder has it (such a string can be no path and goes into no log).
    """
    # Counted first: nearly no text has brackets enough for a second look.
    if _brackets(text) > DEPTH_LIMIT:
        _refuse_depth(_decoded(text))
    try:
        body = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as cause:
        raise _placed(text, cause) from cause
    # Bytes, too: Python's parser takes half a pair that is written in UTF-8.
    escaped = not text.isascii() or (b"\\u" in text if isinstance(text, bytes) else "\\u" in text)
    return _whole(body) if escaped else body


def _whole(value: Any) -> Any:
    """Return *value* with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


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


def _placed(text: bytes | str, cause: Exception) -> json.JSONDecodeError:
    """Return the error of a parser that does not say where, with the place that it must be about."""
    if isinstance(cause, UnicodeDecodeError):
        before = cause.object[: cause.start].decode(cause.encoding, "replace")
        return json.JSONDecodeError(f"not {cause.encoding}: {cause.reason}", _decoded(cause.object), len(before))
    shown = _decoded(text)
    for token in _TOKENS.finditer(shown):
        if token[0].endswith(("NaN", "Infinity")):
            return json.JSONDecodeError(f"JSON has no {token[0]}", shown, token.start())
        if len(token[0]) > 4000 and token[0].lstrip("-").isdigit():
            return json.JSONDecodeError("more digits than a number can have", shown, token.start())
        if token[0][-1].isdigit() and math.isinf(float(token[0])):
            return json.JSONDecodeError(f"the number {token[0]:.40} is too large", shown, token.start())
    return json.JSONDecodeError(str(cause), shown, 0)


def _refuse(name: str) -> None:
    raise ValueError(name)


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value
