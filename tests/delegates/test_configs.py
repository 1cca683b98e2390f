# SPDX-License-Identifier: Apache-2.0
"""Configs of every kind, most of them wrong: a parser returns a record or raises CniError; schemas know the keys."""

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus_py.cni.call import Call
from multus_py.cni.errors import CniError, Code
from multus_py.config.delegate_schema import load, unknown
from multus_py.delegates import bridge, macvlan
from multus_py.delegates.ipam import host_local, static

DELEGATES: dict[str, Any] = {"bridge": bridge, "macvlan": macvlan, "host-local": host_local, "static": static}
WORDS = st.sampled_from(
    [
        "",
        "eth0",
        "10.0.0.1",
        "10.0.0.0/24",
        "10.0.0.0/31",
        "fd00::/64",
        "::ffff:10.0.0.1/120",
        "fd00::1",
        "bridge",
        "0.0.0.0/0",
        "02:00:00:00:00:01",
        "02-00-00-00-00-01",
        "host-local",
        "no\0",
        "\ud800",
        "1/2/3",
        "a" * 99,
        "10.0.0.0/33",
        "::/0",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
RANGE = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("subnet", "rangeStart", "rangeEnd", "gateway"), WORDS | VALUES)
)
ROUTE = st.fixed_dictionaries({}, optional=dict.fromkeys(("dst", "gw", "mtu", "table", "scope"), WORDS | VALUES))
IPAM = st.fixed_dictionaries(
    {},
    optional={
        "type": WORDS | VALUES,
        "ranges": st.lists(st.lists(RANGE | VALUES, max_size=3) | VALUES, max_size=3) | VALUES,
        **dict.fromkeys(("subnet", "rangeStart", "rangeEnd", "gateway", "resolvConf"), WORDS | VALUES),
        "routes": st.lists(ROUTE | VALUES, max_size=2) | VALUES,
        "addresses": st.lists(st.fixed_dictionaries({}, optional={"address": WORDS, "gateway": WORDS}), max_size=2)
        | VALUES,
        "dns": VALUES,
    },
)
ASKED = st.fixed_dictionaries(
    {}, optional={"ips": st.lists(WORDS, max_size=2) | VALUES, "mac": WORDS | VALUES, "ipRanges": VALUES}
)
KEYS = (
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "mtu",
    "hairpinMode",
    "promiscMode",
    "vlan",
    "vlanTrunk",
    "master",
    "mode",
    "mac",
    "bcqueuelen",
    "linkInContainer",
    "portIsolation",
    "enabledad",
    "dns",
    "prevResult",
)
CONFIG = st.fixed_dictionaries(
    {"cniVersion": st.sampled_from(["0.1.0", "0.2.0", "0.4.0", "1.1.0"]), "name": st.just("net")},
    optional={
        **dict.fromkeys(KEYS, WORDS | VALUES),
        "ipam": IPAM | VALUES,
        "runtimeConfig": ASKED | VALUES,
        "args": st.fixed_dictionaries({"cni": ASKED | VALUES}) | VALUES,
    },
)
ARGS = st.lists(st.tuples(st.sampled_from(["MAC", "IP", "GATEWAY", "X"]), WORDS | st.text(max_size=20)), max_size=3)


@pytest.mark.parametrize("kind", DELEGATES)
@settings(max_examples=400, deadline=None)
@given(config=CONFIG, args=ARGS)
def test_a_parser_raises_nothing_but_its_own_error(
    kind: str, config: dict[str, Any], args: list[tuple[str, str]]
) -> None:
    """Whatever a config holds, reading it ends in a record or in a CniError with a code and a message."""
    try:
        DELEGATES[kind].parse(Call("ADD", "c1", "/nonexistent", "net1", tuple(args), (), config))
    except CniError as refusal:
        assert refusal.code in (Code.INVALID_CONFIG, Code.DECODE)
        assert refusal.msg


@pytest.mark.parametrize("kind", DELEGATES)
def test_a_schema_is_one_and_every_key_is_told(kind: str) -> None:
    """Each schema is valid JSON Schema 2020-12, is the delegate's own, and describes every key."""
    schema = load(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == DELEGATES[kind].SCHEMA

    def untold(part: Any, path: str) -> list[str]:
        if not isinstance(part, dict):
            return []
        mine = [
            f"{path}.{key}"
            for key, item in part.get("properties", {}).items()
            if not {"description", "const"} & set(item)
        ]
        return mine + [
            line for key, item in part.get("properties", {}).items() for line in untold(item, f"{path}.{key}")
        ]

    assert untold(schema, kind) == []


ACCEPTED = [
    {"type": "bridge", "bridge": "br0", "mtu": 1400, "vlan": 10, "vlanTrunk": [{"minID": 1, "maxID": 3}, {"id": 9}]},
    {"type": "bridge", "ipMasq": False, "ipMasqBackend": "nftables", "macspoofchk": False, "ISGATEWAY": True},
    {
        "type": "macvlan",
        "master": "eth0",
        "mode": "vepa",
        "bcqueuelen": 5,
        "linkInContainer": True,
        "mac": "02:00:00:00:00:01",
    },
    {
        "type": "bridge",
        "cni.dev/attachments": [],
        "capabilities": {"mac": True},
        "dns": {},
        "args": {},
        "prevResult": {},
    },
]
STRANGE = [
    ({"type": "bridge", "ipMasq": True}, ["ipMasq"]),
    ({"type": "bridge", "macspoofchk": True, "future": {"a": 1}}, ["macspoofchk", "future"]),
    ({"type": "bridge", "vlanTrunk": [{"id": 1}, {"id": 2, "pvid": True}]}, ["vlanTrunk[1].pvid"]),
    ({"type": "macvlan", "isGateway": True}, ["isGateway"]),
    ({"type": "host-local", "ipam": {"type": "host-local", "range": "x"}, "master": "eth0"}, ["ipam.range"]),
    (
        {"type": "static", "ipam": {"type": "static", "addresses": [{"address": "x", "label": "y"}]}},
        ["ipam.addresses[0].label"],
    ),
    ({"type": "static", "ipam": {"type": "static", "routes": [{"dst": "x", "via": "y"}]}}, ["ipam.routes[0].via"]),
    ({"type": "macvlan", "no/domain": 1}, ["no/domain"]),
]


@pytest.mark.parametrize("config", ACCEPTED)
def test_known_keys_are_known(config: dict[str, Any]) -> None:
    """A config of known keys, keys of the protocol and keys of a domain runs natively."""
    assert unknown({"cniVersion": "1.1.0", "name": "net", **config}, load(config["type"])) == []


@pytest.mark.parametrize(("config", "paths"), STRANGE)
def test_strange_keys_are_named_by_their_path(config: dict[str, Any], paths: list[str]) -> None:
    """A key that the delegate does not know, or a value that it leaves to the executable, is named with its place."""
    assert unknown({"cniVersion": "1.1.0", "name": "net", **config}, load(config["type"])) == paths


def test_schemas_refuse_wrong_values() -> None:
    """A person's file with a wrong value is refused by the schema, one with right values is not."""
    schema = jsonschema.Draft202012Validator(load("bridge"))
    good = ACCEPTED[0]
    assert list(schema.iter_errors(good)) == []
    for key, value in (("vlan", 4095), ("mtu", -1), ("vlanTrunk", [{"minID": 1}]), ("isGateway", "yes")):
        assert list(schema.iter_errors({**good, key: value}))
