# SPDX-License-Identifier: Apache-2.0
"""Escape text from outside before it is logged or displayed."""


def one_line(text: str) -> str:
    """Return *text* with each unprintable character as a Python escape: a line feed as `\\\\n`.

    So a name or a plugin's error can neither start a new line in a log nor move the cursor of a terminal.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
