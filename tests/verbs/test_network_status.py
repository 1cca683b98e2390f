# SPDX-License-Identifier: Apache-2.0
"""network-status from results of every shape that real systems give (none of them may lose or invent an address)."""

import json

import pytest

from multus_py.cni import conflist
from multus_py.cni import result as results
from multus_py.plan.attachment import Attachment
from multus_py.verbs import network_status

NETNS = "/run/netns/pod"
CONF = conflist.parse({"cniVersion": "1.0.0", "name": "cluster", "type": "x"})


def statuses(body, primary=True, ifname="eth0"):
    """Return the statuses of one attachment whose result is *body*."""
    attachment = Attachment("cluster", CONF, ifname, primary)
    return network_status.statuses(attachment, results.read(body, "0.4.0"), NETNS)


def ip(address, interface=None, gateway=None):
    """Return one ips entry."""
    pairs = {"version": "4", "address": address, "interface": interface, "gateway": gateway}
    return {key: value for key, value in pairs.items() if value is not None}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"ips": [ip("10.32.0.5/12")]}, [("eth0", ["10.32.0.5"], None)]),  # Weave: no interfaces at all
        (  # Calico before 3.31: the host's end only
            {"interfaces": [{"name": "cali1"}], "ips": [ip("10.1.1.1/32")]},
            [("eth0", ["10.1.1.1"], None)],
        ),
        (  # Azure: no sandbox, no mac
            {"interfaces": [{"name": "eth0"}], "ips": [ip("10.2.0.1/16")]},
            [("eth0", ["10.2.0.1"], None)],
        ),
        (  # AWS VPC CNI: mac is a table number, the dummy's sandbox is a device number
            {
                "interfaces": [{"name": "eni1"}, {"name": "eth0", "mac": "254", "sandbox": NETNS},
                               {"name": "dummy1", "mac": "0", "sandbox": "0"}],
                "ips": [ip("192.168.42.17/32", 1)],
            },
            [("eth0", ["192.168.42.17"], None)],
        ),
        (  # AWS VPC CNI with several cards
            {
                "interfaces": [{"name": "eni1"}, {"name": "eth0", "sandbox": NETNS}, {"name": "eni2"},
                               {"name": "mNicIf1", "sandbox": NETNS}],
                "ips": [ip("192.168.42.17/32", 1), ip("192.168.77.9/32", 3)],
            },
            [("eth0", ["192.168.42.17"], None), ("mNicIf1", ["192.168.77.9"], None)],
        ),
        (  # Antrea: the sandbox is an id
            {"interfaces": [{"name": "ant1"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "abc"}],
             "ips": [ip("10.3.0.1/24", 1)]},
            [("eth0", ["10.3.0.1"], "02:00:00:00:00:01")],
        ),
        (  # Cilium dual stack: IPv6 first
            {"interfaces": [{"name": "lxc1"}, {"name": "eth0", "sandbox": NETNS}],
             "ips": [ip("fd00::1/128", 1), ip("10.0.1.77/32", 1)]},
            [("eth0", ["fd00::1", "10.0.1.77"], None)],
        ),
        (  # OVN-Kubernetes: two interfaces in the pod; an address of no interface belongs to ours
            {"interfaces": [{"name": "h"}, {"name": "eth0", "sandbox": NETNS}, {"name": "ovn-udn1", "sandbox": NETNS}],
             "ips": [ip("10.4.0.1/24", 1), ip("10.5.0.1/24", 2), ip("10.6.0.1/24")]},
            [("eth0", ["10.4.0.1", "10.6.0.1"], None), ("ovn-udn1", ["10.5.0.1"], None)],
        ),
        (  # a host bridge of the same name as the pod's interface
            {"interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:09"}, {"name": "eth0", "sandbox": NETNS}],
             "ips": [ip("10.8.0.1/24", 1)]},
            [("eth0", ["10.8.0.1"], None)],
        ),
        ({}, [("eth0", [], None)]),  # an interface without addresses is still an interface
    ],
)  # fmt: skip
def test_every_shape_tells_each_pod_interface_once(body, wanted):
    """Shapes as Weave, Calico, Azure, AWS, Antrea, Cilium and OVN-Kubernetes return them."""
    told = [(status["interface"], status.get("ips", []), status.get("mac")) for status in statuses(body)]
    assert wanted == told


def test_a_default_route_without_gateway_is_no_gateway():
    """ptp's default route has none: nothing is invented."""
    body = {"ips": [ip("10.0.0.2/24", None, "10.0.0.1")], "routes": [{"dst": "0.0.0.0/0"}]}
    assert "gateway" not in statuses(body)[0]


def test_gateways_come_from_default_routes_only():
    """0.0.0.0/8 is no default route."""
    body = {
        "ips": [ip("10.0.0.2/24")],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "0.0.0.0/8", "gw": "10.0.0.9"}],
    }
    assert ["10.0.0.1"] == statuses(body)[0]["gateway"]


def test_default_is_told_of_the_primary_only_and_dns_always():
    """Consumers look for `default: true`, and for `dns` even when it is empty."""
    first, second = statuses({}), statuses({}, primary=False, ifname="net1")
    assert (True, {}) == (first[0]["default"], first[0]["dns"])
    assert ("default" in second[0], {}) == (False, second[0]["dns"])


def test_the_annotation_is_written_as_the_reference_library_does():
    """`[` + elements indented by four, joined by a comma + `]`."""
    text = network_status.annotation(statuses({"ips": [ip("10.0.0.2/24")]}, primary=False) * 2)
    ips = '"ips": [\n        "10.0.0.2"\n    ]'
    element = f'{{\n    "name": "cluster",\n    "interface": "eth0",\n    {ips},\n    "dns": {{}}\n}}'
    assert f"[{element},{element}]" == text
    assert 2 == len(json.loads(text))
