# SPDX-License-Identifier: Apache-2.0
"""Results: every dialect in and out, foreign keys kept, and nothing but CniError for what cannot be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus_py.cni import result as results
from multus_py.cni import versions
from multus_py.cni.errors import CniError

FULL = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0"},
        {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x", "mtu": 1500, "pciID": "0000:01:00.1"},
    ],
    "ips": [
        {"interface": 1, "address": "10.1.2.3/24", "gateway": "10.1.2.1"},
        {"interface": 1, "address": "fd00::3/64"},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1", "mtu": 1400, "table": 100, "scope": 0}, {"dst": "fd01::/16"}],
    "dns": {"nameservers": ["10.1.2.1"], "search": ["x.y"]},
}


def test_the_newest_dialect_is_lossless():
    """What is read in 1.1.0 is written again key for key."""
    assert FULL == results.write(results.read(FULL), "1.1.0")


@pytest.mark.parametrize("version", versions.SUPPORTED)
def test_every_dialect_reads_what_it_wrote(version):
    """A second pass through a dialect changes nothing."""
    body = results.write(results.read(FULL), version)
    assert body["cniVersion"] == version
    assert body == results.write(results.read(body), version)


def test_middle_dialects_tag_the_address_family():
    """0.3.0 to 0.4.0 have ips[].version and always dns; 1.0.0 must not have the tag; mtu came with 1.1.0."""
    middle, plain = (results.write(results.read(FULL), version) for version in ("0.4.0", "1.0.0"))
    assert ["4", "6"] == [ip["version"] for ip in middle["ips"]]
    assert not [ip for ip in plain["ips"] if "version" in ip]
    assert not [item for body in (middle, plain) for item in body["interfaces"] if "mtu" in item]
    assert {} == results.write(results.Result(), "0.4.0")["dns"]
    assert "dns" not in results.write(results.Result(), "1.0.0")


def test_old_dialects_keep_one_address_per_family():
    """0.2.0 has ip4 and ip6, each with its routes."""
    body = results.write(results.read(FULL), "0.2.0")
    assert ("10.1.2.3/24", "10.1.2.1", [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]) == tuple(body["ip4"].values())
    assert "fd00::3/64" == body["ip6"]["ip"]


def test_old_dialects_refuse_a_result_without_address():
    """There is no way to say it: code 1."""
    with pytest.raises(CniError) as caught:
        results.write(results.Result(), "0.2.0")
    assert 1 == caught.value.code


def test_foreign_keys_survive():
    """Systems that find their own state in prevResult get it back."""
    body = {"cniVersion": "0.4.0", "interfaces": [{"name": "e", "mac": "254", "vlan": 7}], "dns": {}, "aws": {"x": 1}}
    assert body == results.write(results.read(body), "0.4.0")


def test_an_unspecified_address_with_a_prefix_is_no_default_route():
    """Only prefix length 0 is the default: 0.0.0.0/8 is not."""
    routes = results.read({"cniVersion": "1.0.0", "routes": [{"dst": "0.0.0.0/8"}, {"dst": "::/0"}]}).routes
    assert [False, True] == [route.is_default for route in routes]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["interfaces", "ips", "routes", "dns", "ip4", "ip6", "name", "mac", "mtu", "address", "gateway", "interface", "dst",
     "gw", "table", "nameservers", "domain", "cniVersion"]
)  # fmt: skip
shaped = st.recursive(
    json_values | st.sampled_from(["10.0.0.1/8", "::/0", "10.0.0.1", "fe80::1%eth0", "<nil>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(keys, shaped, max_size=5), st.sampled_from(versions.SUPPORTED))
def test_only_cni_errors_come_out_of_any_result(body, version):
    """Fuzz: a delegate may say anything; it is read, or it is a CniError."""
    try:
        read = results.read(body, version)
    except CniError as error:
        assert error.code in (1, 6)
    else:
        assert read == results.read(results.write(read, "1.1.0"))


@pytest.mark.parametrize(
    "dst", ["0.0.0.0", "::", "10.1.0.0/255.255.0.0", "10.1.0.0/0.0.255.255", "fe80::1%eth0/64", "", None]
)
def test_a_network_is_read_as_go_reads_it(dst):
    """Without its length it would be one host here and nothing to a Go program; netmasks and zones are no CIDR."""
    with pytest.raises(CniError, match=r"result: routes\[0\]\.dst must be a network with its prefix length"):
        results.read({"cniVersion": "1.0.0", "routes": [{"dst": dst}]})


@pytest.mark.parametrize(
    "item", [{"address": "10.1.0.2/255.255.0.0"}, {"address": "10.1.0.2/24", "gateway": "fe80::1%eth0"}]
)
def test_an_address_is_read_as_go_reads_it(item):
    """No netmask, no zone."""
    with pytest.raises(CniError, match=r"ips\[0\]"):
        results.read({"cniVersion": "1.0.0", "ips": [item]})


@pytest.mark.parametrize("version", ["0.3.0", "0.4.0", "1.0.0", "1.1.0"])
def test_what_a_route_wants_is_said_in_every_dialect_with_routes(version):
    """What IPAM says of a route reaches the plugin that adds it, as with the reference plugins."""
    route = {"dst": "10.8.0.1/32", "mtu": 1400, "priority": 5, "table": 100, "scope": 253}
    body = {"cniVersion": version, "routes": [route]}
    assert [route] == results.write(results.read(body), version)["routes"]
