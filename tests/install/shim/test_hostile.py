# SPDX-License-Identifier: Apache-2.0
"""Whatever stands on standard input, in the environment or in an answer: no crash, no overflow, one readable reply."""

import json
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from listening import Reply, listening
from shimbox import Box, compile_shim

ROUNDS = int(os.environ.get("MULTUS_PY_SHIM_ROUNDS", "60"))
PIECES = [
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b" ", b"\\", b"\\u", b"\\ud83d", b"\\udc0d", b"\0", b"\xff", b"\n"),
    *(
        b"0",
        b"-",
        b"1e999",
        b"1.5",
        b"true",
        b"null",
        b'"socketDir":',
        b'"daemonSocketDir"',
        b'"spoolDir":"/dev/null/x"',
    ),
    *(b'"readinessTimeout":0.01', b'"shimTimeout":', b'"cniVersion":"0.4.0"', b"[" * 300, b"A" * 5000),
]


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a shim that aborts at the first overflow, bad access or undefined step."""
    probe = subprocess.run(
        ["cc", "-fsanitize=address,undefined", "-x", "c", "-", "-o", "/dev/null"],
        input=b"int main(void) { return 0; }",
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip("the compiler has no sanitizers")
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return compile_shim(tmp_path_factory.mktemp("watched") / "multus-shim", *flags)


def _junk(chance: random.Random) -> bytes:
    """Return pieces of JSON in any order, or bytes of any kind."""
    if chance.random() < 0.2:
        return chance.randbytes(chance.randrange(3000))
    return b"".join(chance.choices(PIECES, k=chance.randrange(60)))


def _mangled(chance: random.Random, text: bytes) -> bytes:
    """Return *text* with junk in the middle, cut short or with a byte changed."""
    at = chance.randrange(len(text))
    return chance.choice(
        [text[:at] + _junk(chance) + text[at:], text[:at], text[:at] + chance.randbytes(1) + text[at + 1 :]]
    )


@pytest.mark.parametrize("verb", ["ADD", "DEL", "STATUS", "VERSION"])
def test_any_input_gets_a_readable_reply(watched: Path, tmp_path: Path, verb: str) -> None:
    """Random configs and environments end in exit code 0 or 1 and in nothing but JSON."""
    box = Box(tmp_path, watched)
    config = json.dumps(box.config(readinessTimeout=0.01, shimTimeout=0.5)).encode()

    def once(seed: int) -> None:
        chance = random.Random(f"{verb} {seed}")
        stdin = _mangled(chance, config)
        env = {
            name: os.fsdecode(_junk(chance).replace(b"\0", b""))
            for name in ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS", "MPT")
            if chance.random() < 0.5
        }
        limits = {"readinessTimeout": 0.01, "socketDir": str(tmp_path), "spoolDir": str(tmp_path / "spool")}
        stdin = b"{%s,%s" % (json.dumps(limits).encode()[1:-1], stdin[1:] or b"}")
        done = box.feed(verb, stdin, env)
        assert done.code in (0, 1), (seed, done)
        assert done.stderr == b"", (seed, done)
        if done.code:
            assert done.error["code"] in (4, 7, 11, 50), (seed, done)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(once, range(ROUNDS)))


def test_any_answer_gets_a_readable_reply(watched: Path, tmp_path: Path) -> None:
    """Random bodies from a daemon gone mad are passed on when they are objects, and are error 999 when not."""
    chance = random.Random(20)
    bodies = [_mangled(chance, b'{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8"}]}') for _ in range(ROUNDS)]
    box = Box(tmp_path, watched)
    with listening(tmp_path, *(Reply(chance.choice([200, 400, 500]), body) for body in bodies), Reply()):
        for body in bodies:
            done = box.call("ADD")
            assert done.stderr == b"", body
            assert done.stdout == body or done.error["code"] == 999, body


@pytest.mark.parametrize(
    "text",
    [
        *("{}", ' {"a":[]}\n', '{"a":{"b":[1,2.5,-0,1e5,1E-5,true,false,null,"\\u00e4\\n\\ud83d\\udc0d"]}}'),
        *('{"a":"\\ud83d"}', '{"":""}', '{"a":1,"a":2}', '{"a":' + "[" * 200 + "]" * 200 + "}"),
        *(
            "",
            "[]",
            "{",
            "{]",
            '{"a"}',
            '{"a":}',
            '{"a":1,}',
            "{,}",
            '{"a":[1,]}',
            '{"a":[1 2]}',
            "{'a':1}",
            '{"a":+1}',
        ),
        *('{"a":.5}', '{"a":5.}', '{"a":1e}', '{"a":0x1}', '{"a":-}', '{"a":truth}', '{"a":True}', '{"a":NaN}'),
        *(
            '{"a":"\t"}',
            '{"a":"\\x"}',
            '{"a":"\\u12g4"}',
            '{"a":"\\u12"}',
            '{"a":"',
            '{"a":"\\',
            "{}{}",
            "{} x",
            "{}\0",
        ),
    ],
)
def test_json_is_json_as_python_has_it(watched: Path, tmp_path: Path, text: str) -> None:
    """The shim and Python's json agree on what is one JSON object."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        good = isinstance(json.loads(text, parse_constant=refuse), dict)
    except ValueError:
        good = text == ""
    with listening(tmp_path, Reply(body=text.encode())):
        done = Box(tmp_path, watched).call("ADD")
    assert (done.code == 0) == good, done
