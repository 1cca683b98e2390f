# SPDX-License-Identifier: Apache-2.0
"""JSON of people: what is refused is refused at its place, whatever the parser says."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus_py.cni import jsontext
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError
from multus_py.cni.jsontext import DEPTH_LIMIT
from multus_py.config import daemon as daemon_config

DEEP = "[" * DEPTH_LIMIT
DIGITS = "9" * 5_000
STRINGS = '"[[{{ NaN -Infinity \\" ' + DIGITS + '"'


@pytest.mark.parametrize(
    ("value", "at", "words"),
    [
        ("nil", 0, "Expecting value"),
        ("NaN", 0, "no NaN"),
        ("-Infinity", 0, "no -Infinity"),
        (DIGITS, 0, "digits"),
        ("-" + DIGITS, 0, "digits"),
        (f"[{STRINGS}, 1.{DIGITS}, {DIGITS}]", 5_000 + len(STRINGS) + 7, "digits"),
        (DEEP + "]" * DEPTH_LIMIT, DEPTH_LIMIT - 1, "more than 100 levels"),
        ('{"a":' * 100_000, (DEPTH_LIMIT - 1) * 5, "more than 100 levels"),
        ("\udcff", 0, "utf-8"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", ""])
def test_what_is_refused_has_its_place(value: str, at: int, words: str, encoding: str) -> None:
    """Line and column are those of the value, in bytes as in text, after strings that look like it."""
    before = f'{{"é": {STRINGS},\n "b": '
    text: bytes | str = f"{before}{value}}}"
    if encoding:
        text = text.encode(encoding, "surrogateescape")
    elif "\udcff" in value:
        return
    with pytest.raises(json.JSONDecodeError, match=words) as caught:
        jsontext.parse(text)
    assert (2, 7 + at) == (caught.value.lineno, caught.value.colno)


def test_depth_up_to_the_limit_is_read() -> None:
    """Many brackets are not yet deep, and brackets in strings are none."""
    body = [json.loads(DEEP[1:] + "]" * (DEPTH_LIMIT - 1)), [[1], {"a": "["}] * DEPTH_LIMIT, "[" * 1_000]
    assert body == jsontext.parse(json.dumps(body))


def test_a_config_is_told_with_its_line(tmp_path: Path) -> None:
    """The daemon's config and every plugin's say line and column, whatever is wrong."""
    for value in ("NaN", DIGITS, "[" * 5_000, '"\udcff"'):
        text = f'{{"a": 1,\n"b": {value}}}'.encode(errors="surrogateescape")
        with pytest.raises(CniError, match=r"is not JSON: line 2 column \d+: "):
            json_object(text)
        path = tmp_path / "daemon-config.json"
        path.write_bytes(text)
        with pytest.raises(CniError, match=r"daemon-config\.json.* line 2 column \d+: "):
            daemon_config.load(path)


@given(st.text(alphabet='[]{}:,"\\aNI0-.e1 \n\u00e9\U0001f600') | st.binary())
def test_any_text_is_read_or_refused_at_a_place(text: str | bytes) -> None:
    """Nothing but a `JSONDecodeError` comes out, and its place exists; what is read is what the parser reads."""
    try:
        body = jsontext.parse(text)
    except json.JSONDecodeError as refused:
        assert 0 <= refused.pos <= len(refused.doc)
    else:
        assert json.dumps(json.loads(text)) == json.dumps(body)
