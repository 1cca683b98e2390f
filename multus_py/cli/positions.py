# SPDX-License-Identifier: Apache-2.0
"""Where a value stands in a file: line and column of a place in a YAML or JSON document, also inside its strings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from multus_py.config.selection import value_offsets

Place = tuple[str | int, ...]
_JSON_CHARACTER = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|[^\"]", re.DOTALL)
# What one escape of a double-quoted scalar takes after the backslash (YAML 1.1, 5.6).
_ESCAPES = {"x": 3, "u": 5, "U": 9}


@dataclass(frozen=True)
class Spot:
    """A place in a text, counted from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Text:
    """A file's name and content."""

    file: str
    content: str

    @cached_property
    def lines(self) -> list[str]:
        """The content by line, without the ends."""
        return self.content.split("\n")

    def at(self, offset: int) -> Spot:
        """Return the spot of the character at *offset*."""
        before = self.content[:offset]
        return Spot(before.count("\n") + 1, offset - before.rfind("\n"))

    def spot(self, root: Any, path: Place, offset: int | None = None) -> Spot:
        """Return where the value at *path* below the YAML node *root* stands, or the nearest one around it.

        Without *root* the text is JSON. With *offset* the value is a string, and the spot that of its character.
        """
        if root is None:
            return self._json_spot(path, offset)
        node = root
        for part in path:
            child = _child(node, part)
            if child is None:
                return _start(node)
            node = child
        if offset is None or node.id != "scalar":
            return _start(node)
        return self._inside(node, offset)

    @cached_property
    def _json_places(self) -> dict[Place, int]:
        return value_offsets(self.content)

    def _json_spot(self, path: Place, offset: int | None) -> Spot:
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in self._json_places), None)
        if known is None:
            return Spot(1, 1)
        at = self._json_places[known]
        if offset is not None and known == path and self.content[at] == '"':
            at += 1
            for _ in range(offset):
                at += _json_width(self.content, at)
        return self.at(at)

    def _inside(self, node: Any, offset: int) -> Spot:
        if node.style == "|":
            return self._inside_block(node, offset)
        start = node.start_mark
        if node.style == ">" or start.line != node.end_mark.line:
            return _start(node)  # folded over lines: which blank stands for which is not worth the search
        line = self.lines[start.line]
        if node.style == '"':
            at = start.column + 1
            for _ in range(offset):
                at += _width(line, at)
        elif node.style == "'":
            at = start.column + 1 + offset + node.value[:offset].count("'")
        else:
            at = start.column + offset
        return Spot(start.line + 1, min(at, len(line)) + 1)

    def _inside_block(self, node: Any, offset: int) -> Spot:
        before = node.value[:offset]
        row, column = before.count("\n"), offset - (before.rfind("\n") + 1)
        line = node.start_mark.line + 1 + row
        if line >= len(self.lines):
            return Spot(len(self.lines), 1)
        value_line = node.value.split("\n")[row]
        indent = max(len(self.lines[line].rstrip("\r")) - len(value_line), 0)
        return Spot(line + 1, indent + column + 1)


def value_at(body: Any, path: Place) -> Any:
    """Return the value at *path* of plain data, None when there is none."""
    for part in path:
        if not isinstance(body, Mapping):
            return None
        body = body.get(part)
    return body


def _start(node: Any) -> Spot:
    return Spot(node.start_mark.line + 1, node.start_mark.column + 1)


def _child(node: Any, part: str | int) -> Any:
    if node.id == "sequence" and isinstance(part, int):
        return node.value[part] if part < len(node.value) else None
    if node.id == "mapping":
        # The last one of equal keys is the one that counts.
        return next((value for key, value in reversed(node.value) if key.value == part), None)
    return None


def _json_width(text: str, at: int) -> int:
    """Return what one character of a JSON string takes; those beyond 16 bits are two escapes (RFC 8259, 7)."""
    found = _JSON_CHARACTER.match(text, at)
    return len(found[0]) if found else 0


def _width(line: str, at: int) -> int:
    if at < len(line) and line[at] == "\\":
        return 1 + _ESCAPES.get(line[at + 1 : at + 2], 1)
    return 1
