# SPDX-License-Identifier: Apache-2.0
"""Rows of cells as aligned columns of text."""

from collections.abc import Iterable, Sequence

from multus_py.cni.text import one_line


def columns(rows: Iterable[Sequence[str]], widths: Sequence[int] = ()) -> str:
    """Return the rows as lines, each cell on one line and two spaces between columns; *widths* are minimum widths."""
    cells = [tuple(map(one_line, row)) for row in rows]
    if not cells:
        return ""
    least = [*widths, *[0] * len(cells[0])]
    width = [max(least[n], *(len(row[n]) for row in cells)) for n in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(row, width, strict=True)).rstrip() for row in cells)
