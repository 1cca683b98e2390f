# SPDX-License-Identifier: Apache-2.0
"""Words of others on their way to people: what is in a log, an Event or a terminal is one line, and only text."""


def one_line(text: str) -> str:
    """Return *text* with each character that is not printed written as Python escapes it: a line feed as `\\\\n`.

    A name, an error of a plugin or what a pod calls its interface can so neither begin a line of its own in a log nor
    move the cursor of a terminal.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
