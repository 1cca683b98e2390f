# SPDX-License-Identifier: Apache-2.0
"""The eight default networks under the real daemon and shim: every variant of their conflists, from install to DEL."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import libcni
import pytest
import systems
from systems import VARIANTS, Variant
from world import BIN, UID, Runtime, World

import multus_py

EVERY = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def chain(world: World, variant: Variant, verb: str) -> list[dict[str, Any]]:
    """Return the calls of one verb to the plugins of the list itself; what those run in turn is theirs."""
    types = [plugin["type"] for plugin in variant.body["plugins"]]
    return [call for call in world.calls(verb=verb) if Path(call["argv0"]).name in types]


def compare(world: World, variant: Variant, verb: str, declared: frozenset[str] | None = None) -> None:
    """Compare each call of one verb with what libcni would have sent.

    The differences that there are: CNI_ARGS comes in multus-cni's order (a set to every reader), our binDir stands in
    front of the runtime's CNI_PATH and so the same folder may be there twice. *declared* are the capabilities that our
    own conf declares, when it wraps another system's: what it does not declare the runtime does not say.
    """
    runtime = Runtime(world, ports=variant.ports)
    said = {key: value for key, value in runtime.capabilities.items() if declared is None or key in declared}
    want = libcni.Attachment(variant.conflist.read_text(), runtime.container, world.netns, "eth0", runtime.args, said)
    made = chain(world, variant, verb)
    if not want.asked(verb):
        assert [] == made
        return
    results = [call["stdout"] for call in chain(world, variant, "ADD")]
    wanted = want.configs(verb, results)
    assert wanted == [(Path(call["argv0"]).name, libcni.exact(call["stdin"])) for call in made]
    for call in made:
        env = dict(call["env"])
        assert want.args == dict(pair.split("=") for pair in env.pop("CNI_ARGS").split(";"))
        path = list(dict.fromkeys(env.pop("CNI_PATH").split(":")))
        assert want.environment(verb, path) == {**env, "CNI_PATH": ":".join(path)}
        assert [BIN] == path
        assert call["argv0"].startswith(f"{BIN}/"), "found by one name and started by another"


def attached(world: World, variant: Variant) -> Runtime:
    """Install a system, start the daemon, attach the pod; return the runtime."""
    variant.install(world)
    world.start()
    runtime = Runtime(world)
    assert 0 == runtime.call("ADD")[0]
    return runtime


def shape(body: Any) -> Any:
    """Return what is where, without the values; of an object the keys, of text and numbers the kind.

    An empty `dns` is left out: Debian's plugins write it in every version, newer ones up to 0.4.0.
    """
    if isinstance(body, dict):
        return {key: shape(value) for key, value in body.items() if (key, value) != ("dns", {})}
    if isinstance(body, list):
        return [shape(item) for item in body]
    return type(body).__name__


@EVERY
def test_a_pods_life(world, variant):
    """Install, ADD, restart of the daemon, CHECK, DEL: the plugins' input, the pod's interfaces, what is left."""
    runtime, result = attach_and_compare(world, variant)
    if real := variant.real_result():
        assert shape(real) == shape(json.loads(chain(world, variant, "ADD")[0]["stdout"]))
    assert "eth0" == world.links()[0]
    assert {"net1", "net2"} <= set(world.links())
    assert [*variant.ips] == [ip["address"].partition("/")[0] for ip in result["ips"]]
    compare_status(world, variant)
    world.restart()
    assert (0, None) == runtime.call("CHECK")
    compare(world, variant, "CHECK")
    assert (0, None) == runtime.call("DEL", prevResult=result)
    compare(world, variant, "DEL")
    assert [] == world.left()
    assert (0, None) == runtime.call("DEL")


def attach_and_compare(world: World, variant: Variant) -> tuple[Runtime, Any]:
    """Install, run ADD and compare what the plugins got; return the runtime and the result."""
    variant.install(world)
    world.start()
    runtime = Runtime(world, ports=variant.ports)
    code, result = runtime.call("ADD")
    assert 0 == code, (result, world.log())
    compare(world, variant, "ADD")
    return runtime, result


def compare_status(world: World, variant: Variant) -> None:
    """Compare network-status with what the pod has and with what the variant's result says."""
    first, *others = world.status()
    wanted = {
        "name": variant.body["name"],
        "interface": "eth0",
        "ips": [*variant.ips],
        **({"mac": world.mac("eth0")} if variant.mac else {}),
        **({"mtu": variant.mtu} if variant.mtu else {}),
        "default": True,
        "dns": {},
        **({"gateway": [*variant.gateway]} if variant.gateway else {}),
    }
    assert wanted == first
    assert set(wanted["ips"]) == world.addresses("eth0")
    assert [("default/b", "net1"), ("default/m", "net2")] == [(one["name"], one["interface"]) for one in others]
    for one in others:
        assert set(one["ips"]) == world.addresses(one["interface"])


@pytest.mark.parametrize("name", ["calico-operator", "weave-current", "gke-current"])
def test_executables_in_the_nodes_root(world, name):
    """A daemon in a container with chrootDir: executables find their files and each other where the node has them."""
    world.chrooted = False
    variant = systems.named(name)
    runtime, _ = attach_and_compare(world, variant)
    compare_status(world, variant)
    assert (0, None) == runtime.call("CHECK")
    assert (0, None) == runtime.call("DEL")
    compare(world, variant, "DEL")
    assert [] == world.left()


@pytest.mark.parametrize("name", ["cilium-current", "weave-current"])
def test_one_plugins_conf_instead_of_a_list(world, tmp_path, name):
    """Older releases wrote a single config (05-cilium.conf, 10-weave.conf): the plugin gets the same input."""
    variant = systems.named(name)
    body = variant.body
    single = tmp_path / variant.conflist.with_suffix(".conf").name
    single.write_text(json.dumps({**body["plugins"][0], "cniVersion": body["cniVersion"], "name": body["name"]}))
    variant.install(world, single)
    world.start()
    runtime = Runtime(world)
    assert 0 == runtime.call("ADD")[0]
    alone = libcni.Attachment(json.dumps({**body, "plugins": body["plugins"][:1]}), "", "", "", {}, {})
    (added,) = chain(world, variant, "ADD")
    assert alone.configs("ADD", [])[0][1] == libcni.exact(added["stdin"])
    compare_status(world, variant)
    world.restart()
    assert 0 == runtime.call("DEL")[0]
    (deleted,) = chain(world, variant, "DEL")
    assert added["stdin"] == deleted["stdin"]
    assert [] == world.left()


# --- the same system twice, two systems at once -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("aws-current", "failed to add default route"),
        ("azure-overlay", "File exists"),
        ("weave-current", "File exists"),
        ("calico-manifest-v3.31", "plugin calico took eth0 away, which it made before"),
    ],
)
def test_a_system_of_one_attachment_a_pod_is_taken_back(world, name, said):
    """As a second network of the same pod it is refused, by itself or (Calico) by what it does; nothing stays."""
    variant = systems.named(name)
    variant.install(world)
    world.stage.definition("again", variant.conflist.read_text())
    world.stage.pod("p", "b,again,m", uid=UID)
    world.start()
    code, error = Runtime(world).call("ADD")
    assert (1, True) == (code, said in error["msg"]), error
    assert "network default/again as net2" in error["msg"]
    assert [] == world.left()
    assert [] == world.status()
    assert (0, None) == Runtime(world).call("DEL")


def test_a_system_of_one_state_a_container_is_deleted_whole(world):
    """Cilium's DEL names the container alone: the second network's takes both endpoints, the first's finds none."""
    variant = systems.named("cilium-current")
    variant.install(world)
    world.stage.definition("again", variant.conflist.read_text())
    world.stage.pod("p", "b,again", uid=UID)
    world.start()
    code, answer = Runtime(world).call("ADD")
    assert 0 == code, answer
    assert {"eth0", "net1", "net2"} == set(world.links())
    assert ["eth0", "net2"] == [call["env"]["CNI_IFNAME"] for call in world.calls("cilium-cni", "ADD")]
    assert (0, None) == Runtime(world).call("DEL")
    assert ["net2", "eth0"] == [call["env"]["CNI_IFNAME"] for call in world.calls("cilium-cni", "DEL")]
    assert [] == world.left()


@pytest.mark.parametrize(
    ("cluster", "chosen"),
    [("cilium-current", "flannel-current"), ("calico-current", "weave-current"), ("gke-current", "aws-current")],
)
def test_a_pod_chooses_another_default_network(world, cluster, chosen):
    """`v1.multus-cni.io/default-network` puts one system in place of the other, for one pod alone."""
    other = systems.named(chosen)
    other.install(world)
    world.at(f"/etc/cni/net.d/{other.conflist.name}").unlink()
    usual = systems.named(cluster)
    usual.install(world)
    world.stage.definition("other", other.conflist.read_text(), namespace="kube-system")
    annotation = {"v1.multus-cni.io/default-network": "kube-system/other"}
    world.stage.pod("p", "b,m", uid=UID, **annotation)
    world.start()
    code, result = Runtime(world).call("ADD")
    assert 0 == code, result
    declared = frozenset(key for plugin in usual.body["plugins"] for key in plugin.get("capabilities", {}))
    compare(world, other, "ADD", declared)
    first = world.status()[0]
    assert ("kube-system/other", "eth0", [*other.ips], True) == tuple(
        first[key] for key in ("name", "interface", "ips", "default")
    )
    world.stage.pod("p", "b,m", uid=UID)  # what the pod says now counts for the next ADD, not for this DEL
    assert 0 == Runtime(world).call("DEL")[0]
    compare(world, other, "DEL", declared)
    assert [] == world.left()
    assert 0 == Runtime(world).call("ADD")[0]
    assert [*usual.ips] == world.status()[0]["ips"]
    assert 0 == Runtime(world).call("DEL")[0]
    assert [] == world.left()


# --- results of odd shapes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "settings", "annotations", "wanted"),
    [
        ("branch-eni.json", {"branch-eni": True}, {}, [("eth0", ["192.168.42.17"], True)]),
        (
            "multi-nic.json",
            {},
            {"k8s.amazonaws.com/nicConfig": "multi-nic-attachment"},
            [("eth0", ["192.168.42.17"], True), ("mNicIf1", ["192.168.77.9"], None)],
        ),
    ],
)
def test_numbers_under_the_keys_of_names(world, file, settings, annotations, wanted):
    """AWS keeps table, VLAN and card in `mac` and `sandbox`: status tells none of them, DEL hands all of them back."""
    variant = systems.named("aws-current")
    variant.install(world)
    world.write("/etc/scripted.json", json.dumps({"aws-cni": settings}))
    world.start()
    runtime = Runtime(world, annotations=annotations)
    code, result = runtime.call("ADD")
    assert 0 == code, result
    real = json.loads((systems.DATA / "aws" / file).read_text())
    assert shape(real) == shape(json.loads(chain(world, variant, "ADD")[0]["stdout"]))
    published = [(one["interface"], one.get("ips"), one.get("default")) for one in world.status()]
    assert wanted == published[: len(wanted)]
    assert not [one for one in world.status()[: len(wanted)] if "mac" in one]
    world.restart()
    assert (0, None) == runtime.call("DEL")
    previous = [libcni.exact(call["stdin"])["prevResult"] for call in chain(world, variant, "DEL")]
    assert [libcni.exact(chain(world, variant, "ADD")[-1]["stdout"])] * 3 == previous
    assert [] == world.left()


def test_a_claimed_default_route_changes_nothing_else_of_the_result(world, tmp_path):
    """Another network takes the IPv4 default: prevResult lacks that route and is as it was said in all other keys.

    `mtu` of a route came with 1.1.0; a system that writes it earlier, as Cilium does, gets it back all the same.
    """
    variant = systems.named("cilium-current")
    newer = tmp_path / variant.conflist.name
    newer.write_text(json.dumps({**variant.body, "cniVersion": "1.0.0"}))
    variant.install(world, newer)
    world.write("/etc/scripted.json", json.dumps({"cilium-cni": {"dual-stack": True}}))
    world.stage.pod("p", [{"name": "b", "default-route": ["10.89.0.1"]}], uid=UID)
    world.start()
    assert 0 == Runtime(world).call("ADD")[0]
    said = json.loads(chain(world, variant, "ADD")[0]["stdout"])
    assert ["fd00::1:77", "10.0.1.77"] == world.status()[0]["ips"]
    assert (["fd00::1:23"], ["10.89.0.1"]) == tuple(one["gateway"] for one in world.status())
    assert (0, None) == Runtime(world).call("CHECK")
    assert (0, None) == Runtime(world).call("DEL")
    wanted = {**said, "routes": [route for route in said["routes"] if route["dst"] != "0.0.0.0/0"]}
    for verb in ("CHECK", "DEL"):
        assert [wanted] == [json.loads(call["stdin"])["prevResult"] for call in chain(world, variant, verb)]
    assert [] == world.left()


def test_the_newest_lists_are_asked_for_their_status(world, tmp_path):
    """From 1.1.0 on STATUS and GC reach the plugins, with the variables of a sandbox empty; code 50 passes through."""
    variant = systems.named("cilium-current")
    newer = tmp_path / variant.conflist.name
    newer.write_text(json.dumps({**variant.body, "cniVersion": "1.1.0"}))
    variant.install(world, newer)
    world.write("/etc/scripted.json", json.dumps({"cilium-cni": {"dual-stack": True}}))
    world.start()
    runtime = Runtime(world)
    assert 0 == runtime.call("ADD")[0]
    real = json.loads((systems.DATA / "cilium" / "dual-stack.json").read_text())
    assert shape(real) == shape(json.loads(chain(world, variant, "ADD")[0]["stdout"]))
    valid = [{"containerID": runtime.container, "ifname": "eth0"}]
    assert (0, None) == runtime.call("GC", **{"cni.dev/valid-attachments": valid})
    world.at("/run/cilium/cilium.sock").unlink()
    code, error = runtime.call("STATUS")
    assert (1, 50) == (code, error["code"])
    for call in [*chain(world, variant, "STATUS"), *chain(world, variant, "GC")]:
        about_a_sandbox = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS")
        assert [""] * 4 == [call["env"][key] for key in about_a_sandbox]
    (collected,) = chain(world, variant, "GC")
    assert valid == json.loads(collected["stdin"])["cni.dev/valid-attachments"]


# --- not ready, not there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sign"),
    [("flannel-current", "/run/flannel/subnet.env"), ("calico-manifest-v3.31", "/var/lib/calico/nodename")],
)
def test_the_sign_that_a_system_is_ready(world, name, sign):
    """Some conflists are there before their agent: with `readinessindicatorfile` pods wait, and STATUS says 50."""
    variant = systems.named(name)
    variant.install(world)
    text = world.at(sign).read_text()
    world.at(sign).unlink()
    world.options |= {"readinessindicatorfile": sign, "readinessTimeout": 0.3}
    world.start()
    runtime = Runtime(world)
    assert [(1, 50), (1, 11)] == [(code, error["code"]) for code, error in map(runtime.call, ("STATUS", "ADD"))]
    assert [] == world.calls()
    world.write(sign, text)
    assert (0, None) == runtime.call("STATUS")
    assert 0 == runtime.call("ADD")[0]
    assert (0, None) == runtime.call("DEL")
    assert [] == world.left()


def test_a_delete_that_the_system_refuses_is_kept(world):
    """Calico cannot delete without its nodename file: the error is returned, and the next DEL has all records."""
    runtime = attached(world, systems.named("calico-manifest-v3.31"))
    world.at("/var/lib/calico/nodename").unlink()
    code, error = runtime.call("DEL")
    assert (1, True) == (code, "calico/node container" in error["msg"]), error
    world.at("/etc/cni/net.d/10-calico.conflist").unlink()
    world.restart()
    world.write("/var/lib/calico/nodename", "worker-1")
    assert (0, None) == runtime.call("DEL", netns="")
    assert [] == [one for one in world.left() if not one.startswith("pod link")]


def test_a_delete_while_the_agent_is_down(world):
    """Cilium's DEL without its agent queues the request on the node and succeeds: so do we."""
    runtime = attached(world, systems.named("cilium-current"))
    world.at("/run/cilium/cilium.sock").unlink()
    assert (0, None) == runtime.call("DEL")
    (queued,) = world.at("/run/cilium/deleteQueue").iterdir()
    assert runtime.container == json.loads(queued.read_text())["container-id"]
    assert not list(world.at("/var/lib/cni/multus/attachments").iterdir())


def test_a_conflist_that_goes_away_and_comes_back(world):
    """GKE's watchdog removes it: STATUS says 50, ADD to try again, pods from before are checked and deleted."""
    variant = systems.named("gke-current")
    runtime = attached(world, variant)
    place = world.at(f"/etc/cni/net.d/{variant.conflist.name}")
    text = place.read_text()
    place.unlink()
    assert (0, None) == runtime.call("CHECK")
    assert (0, None) == runtime.call("DEL")
    assert [] == world.left()
    assert [(1, 50), (1, 11)] == [(code, error["code"]) for code, error in map(runtime.call, ("STATUS", "ADD"))]
    place.write_text(text)
    assert (0, None) == runtime.call("STATUS")
    assert 0 == runtime.call("ADD")[0]
    assert 0 == runtime.call("DEL")[0]


# --- what these tests rest on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weave-plugin-2.8.1", "calico-v3.32"])
def test_a_program_of_several_names_works_under_those_alone(world, name):
    """The scripted executables end as the real ones do when they are started by the name behind a link."""
    systems.named("weave-current").install(world)
    program = world.at(BIN) / name
    if not program.exists():
        program.write_bytes((world.at(BIN) / "calico").read_bytes())
        program.chmod(0o755)
    done = world.run(f"{BIN}/{name}", {"CNI_COMMAND": "VERSION"})
    assert 0 != done.returncode
    assert [] == world.calls()


def test_no_system_is_named_in_our_code():
    """What is right for these eight comes from what they write and do: no name of theirs decides anything.

    Sentences for people may name them: only words without a blank can be compared with something.
    """
    names = re.compile(r"cilium|calico|canal|flannel|weave|aws|azure|gke|eni\b", re.IGNORECASE)
    found = []
    for path in sorted(Path(multus_py.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        quiet = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        found += [
            f"{path.name}:{node.lineno}: {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet
            and " " not in node.value and names.search(node.value)
        ]  # fmt: skip
    assert [] == found
