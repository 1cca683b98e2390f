# SPDX-License-Identifier: Apache-2.0
"""`multus-py status`: the journal's word beside the kernel's, every difference marked."""

import json
from argparse import Namespace

import pytest
from stage import Stage, namespace

from multus_py.cli import status
from multus_py.cni.errors import CniError
from multus_py.kernel import namespaces, netlink


@pytest.fixture
def stage(tmp_path):
    """A pod with a bridge by default, another bridge that has the default route, attached."""
    with namespace() as host, namespace() as pod:
        static = {"type": "static", "addresses": [{"address": "10.88.0.2/24", "gateway": "10.88.0.1"}]}
        cluster = {"cniVersion": "1.0.0", "name": "cluster", "type": "bridge", "bridge": "br0", "ipam": static}
        stage = Stage(tmp_path, pod, {"delegates": [cluster], "host": host})
        more = {**static, "addresses": [{"address": "10.89.0.2/24"}, {"address": "fd89::2/64"}]}
        stage.definition("b", {"cniVersion": "1.0.0", "type": "bridge", "bridge": "br1", "ipam": more})
        stage.pod("p", '[{"name":"b","default-route":["10.89.0.1"]}]')
        namespaces.run_in(host, lambda: stage.run("ADD", "p"))
        yield stage


def shown(stage, capsys, pod="", *, as_json=True):
    """Run the command; return its exit code and what it printed."""
    code = status.run(Namespace(pod=pod, cni_dir=stage.folder / "cni", json=as_json))
    out = capsys.readouterr().out
    return code, json.loads(out) if as_json else out


def test_what_is_as_it_was_left_is_shown_whole(stage, capsys):
    """Pod, interfaces, networks, addresses with prefix; no drift, exit code 0."""
    code, (sandbox,) = shown(stage, capsys)
    assert (0, "default", "p", "c1", stage.netns, False) == (
        code, *(sandbox[key] for key in ("namespace", "pod", "container", "netns", "drifted")),
    )  # fmt: skip
    assert [("eth0", "cluster", ["10.88.0.2/24"], []), ("net1", "default/b", ["10.89.0.2/24", "fd89::2/64"], [])] == [
        (item["ifname"], item["network"], item["ips"], item["drift"]) for item in sandbox["interfaces"]
    ]


def test_every_drift_is_marked(stage, capsys):
    """An address, the default route, the MAC, an interface that is down, one that is gone."""
    with netlink.open(stage.netns) as kernel:
        net1 = kernel.link("net1")
        for route in kernel.default_routes(4):
            kernel.delete_route(route)
        for address in kernel.addresses(net1.index, 4):
            kernel.delete_address(net1.index, address.interface)
        kernel.set_link(net1.index, up=False)
        kernel.set_link(net1.index, mac="02:00:00:00:00:99")
        kernel.delete_link(kernel.link("eth0").index)
    code, (sandbox,) = shown(stage, capsys)
    drift = {item["ifname"]: "; ".join(item["drift"]) for item in sandbox["interfaces"]}
    assert (1, "the interface is not there") == (code, drift["eth0"])
    for words in ("10.89.0.2/24 is not there", "the MAC was", "it is down", "default route is not by 10.89.0.1"):
        assert words in drift["net1"]


def test_a_route_that_is_gone_is_told_as_check_tells_it(stage, capsys):
    """A route that IPAM named: CHECK is an error, status marks it on its interface and exits with 1."""
    more = {"type": "static", "addresses": [{"address": "10.90.0.2/24"}], "routes": [{"dst": "192.0.2.0/24"}]}
    stage.definition("r", {"cniVersion": "1.0.0", "type": "bridge", "bridge": "br2", "ipam": more})
    stage.pod("q", "r")
    with namespace() as other:
        namespaces.run_in(stage.settings["host"], lambda: stage.run("ADD", "q", container="c2", netns=other))
        assert 0 == shown(stage, capsys)[0]
        with netlink.open(other) as kernel:
            (route,) = [route for route in kernel.routes(4) if str(route.dst) == "192.0.2.0/24"]
            kernel.delete_route(route)
        with pytest.raises(CniError, match=r"network default/r as net1: .*has no route to 192\.0\.2\.0/24"):
            namespaces.run_in(stage.settings["host"], lambda: stage.run("CHECK", "q", container="c2", netns=other))
        code, (sandbox,) = shown(stage, capsys, "q")
    drift = {item["ifname"]: item["drift"] for item in sandbox["interfaces"]}
    assert (1, {"eth0": [], "net1": ["the route to 192.0.2.0/24 is not there"]}) == (code, drift)


def test_a_lost_namespace_and_a_damaged_page_are_told(stage, capsys):
    """What cannot be looked at is not silently fine."""
    with namespace() as gone:
        namespaces.run_in(stage.settings["host"], lambda: stage.run("ADD", "p", container="c2", netns=gone))
    (stage.folder / "cni/attachments/c3@eth0").write_text("x")
    code, found = shown(stage, capsys)
    assert (1, [False, True, True]) == (code, [bool(sandbox["trouble"]) for sandbox in found])


def test_one_pod_is_picked_and_an_unknown_one_is_an_error(stage, capsys):
    """NAME or NAMESPACE/NAME; nothing found is exit code 1."""
    assert 1 == len(shown(stage, capsys, "p")[1]) == len(shown(stage, capsys, "default/p")[1])
    assert (1, []) == shown(stage, capsys, "other/p")


def test_people_get_a_table(stage, capsys):
    """A heading and a row for each interface, the pod's name once."""
    lines = shown(stage, capsys, as_json=False)[1].splitlines()
    assert ["POD", "default/p", "net1"] == [line.split()[0] for line in lines]
