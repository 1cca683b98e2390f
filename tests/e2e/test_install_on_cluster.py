# SPDX-License-Identifier: Apache-2.0
"""The manifest as it is, its image included, on a real node: applied, updated while pods come and go, taken away again.

E2E_DAEMON_IMAGE is what this node calls the image, and says that it has it; its folders are a stock node's.
"""

import json
import os
import re
import secrets
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cluster_node import ROOT, Node, definition, pod, until

from multus_py.kernel import netlink

BIN, CONF, STATE, RUN = Path("/opt/cni/bin"), Path("/etc/cni/net.d"), Path("/var/lib/cni"), Path("/run/multus")
OURS = CONF / "00-multus-py.conflist"
SHIM = BIN / "multus-py"
SYSTEM = ("-n", "kube-system")
LABEL = "app.kubernetes.io/name=multus-py"
# What README.md tells people to run in the daemon's container; a test adds --drain itself.
UNINSTALL = re.search(r"-- (multus-py uninstall .*) --drain$", (ROOT / "README.md").read_text(), re.M)[1].split()
TAG = secrets.token_hex(2)
WANTED = f"b{TAG},m{TAG},p{TAG}"
KUBECONFIG = os.environ.get("KUBECONFIG", "")
IMAGE = os.environ.get("E2E_DAEMON_IMAGE", "")
MANIFEST = re.sub(r"image: multus-py:\S+", f"image: {IMAGE}", (ROOT / "examples/deploy/multus-py.yaml").read_text())
PLACES = (os.environ.get("E2E_CNI_BIN"), os.environ.get("E2E_CNI_CONF")) == (str(BIN), str(CONF))

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not (KUBECONFIG and IMAGE and PLACES), reason="needs a stock node that has E2E_DAEMON_IMAGE"),
]


@pytest.fixture(scope="module")
def bare():
    """Give what was on the node before anything of ours: all of it, and nothing else, is to be there afterwards."""
    return traces()


@pytest.fixture(scope="module")
def node(tmp_path_factory, bare):
    """Give a namespace on a node that has nothing of ours; all of the manifest is gone at the end."""
    node = Node(KUBECONFIG, BIN, CONF, tmp_path_factory.mktemp("node"), f"mpt-{TAG}")
    node.kubectl("create", "namespace", node.namespace)
    try:
        yield node
    finally:
        delete_pods(node)
        if daemon(node):
            with suppress(AssertionError):  # what it leaves is told below, after everything else
                on_the_node(node, *UNINSTALL, "--drain", "--timeout", "100")
        node.kubectl(*SYSTEM, "delete", "-f", "-", "--ignore-not-found", stdin=MANIFEST, check=False)
        node.kubectl("delete", "namespace", node.namespace, "--wait=false", check=False)
    until(lambda: traces() == bare, lambda: f"{bare} became {traces()}", 60)


@pytest.fixture
def installed(node):
    """Give the node with the manifest applied and three networks; the pods of a test leave nothing on it."""
    apply(node)
    before = pods_traces()
    ours = {"type": "bridge", "bridge": f"mpt{TAG}", "isGateway": True}
    networks = {
        "b": {**ours, "ipam": {"type": "host-local", "subnet": "10.71.0.0/16"}},
        "m": {"type": "macvlan", "master": f"mpt{TAG}", "ipam": {"type": "host-local", "subnet": "10.72.0.0/16"}},
        # No delegate of ours: the node's executables, in the node's root.
        "p": {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.73.0.0/16"}},
    }
    node.apply(*(definition(f"{name}{TAG}", {"cniVersion": "1.0.0", **body}) for name, body in networks.items()))
    try:
        yield node
    finally:
        delete_pods(node)
        with netlink.open() as kernel:
            for link in kernel.links():
                if link.name == f"mpt{TAG}":
                    kernel.delete_link(link.index)
    until(lambda: pods_traces() == before, lambda: f"{before} became {pods_traces()}; {daemon_log(node)[-3000:]}", 90)


def apply(node):
    """Do what the documentation says, and wait until every daemon is ready."""
    node.kubectl(*SYSTEM, "apply", "-f", "-", stdin=MANIFEST)
    try:
        node.kubectl(*SYSTEM, "rollout", "status", "daemonset/multus-py", "--timeout=120s")
    except AssertionError as trouble:
        told = node.kubectl(*SYSTEM, "describe", "pods", "-l", LABEL) + daemon_log(node)
        raise AssertionError(f"{trouble}\n{told}") from trouble


def delete_pods(node):
    """Delete the pods of the tests' namespace and wait until they are gone."""
    node.kubectl("delete", "deployments,pods", "--all", "--wait=false", check=False)
    node.gone()


def daemon(node):
    """Return the daemon's pod, as the API server has it; None while there is not exactly one."""
    items = json.loads(node.kubectl(*SYSTEM, "get", "pods", "-l", LABEL, "-o", "json"))["items"]
    return items[0] if len(items) == 1 else None


def daemon_log(node):
    """Return what the daemon that runs now logged."""
    return node.kubectl(*SYSTEM, "logs", "-l", LABEL, "-c", "daemon", "--tail=-1", check=False)


def on_the_node(node, *words):
    """Run a command in the daemon's container, as the documentation says; return what it printed."""
    return node.kubectl(*SYSTEM, "exec", daemon(node)["metadata"]["name"], "-c", "daemon", "--", *words)


def failed_sandboxes(node, names):
    """Return how often kubelet could not make the sandbox of a pod whose name begins with *names*."""
    items = json.loads(node.kubectl("get", "events", "-o", "json"))["items"]
    failed = [event for event in items if event["reason"] == "FailedCreatePodSandBox"]
    return sum(event.get("count") or 1 for event in failed if event["involvedObject"]["name"].startswith(names))


def traces():
    """Return all that pods and we could leave on this node: links, namespaces, addresses, state, rules, conf, shim."""
    state = [path for path in (*STATE.rglob("*"), *RUN.rglob("*")) if path.is_file() or path.is_socket()]
    # The lock and the last address are a pool's, the lock of our socket's folder is the folder's.
    lasting = re.compile(r"lock|last_reserved_ip\.\d+|\.reserving|\.daemon\.lock")
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()
    with netlink.open() as kernel:
        links = sorted(link.name for link in kernel.links() if link.kind != "bridge")
    return {
        "links": links,
        "namespaces": sorted(path.name for path in Path("/run/netns").glob("*")),
        "state": sorted(str(path) for path in state if not lasting.fullmatch(path.name)),
        "rules": sorted(line for line in rules if line.startswith("-A") and "KUBE-" not in line),
        "confs": sorted(path.name for path in CONF.iterdir()),
        "executables": sorted(path.name for path in BIN.iterdir()),
        "devices": sorted(str(path) for path in Path("/run/k8s.cni.cncf.io").rglob("*") if path.is_file()),
    }


def pods_traces():
    """Return what pods could leave: a DaemonSet that a test puts back leaves more, and containerd's results stay."""
    found = traces()
    state = [path for path in found["state"] if not path.startswith((str(RUN), str(STATE / "results")))]
    return {"links": found["links"], "namespaces": found["namespaces"], "rules": found["rules"], "state": state}


def interfaces(node, name):
    """Return the names of a pod's interfaces, as the kernel has them."""
    told = node.kubectl("exec", name, "--", "ip", "-o", "link")
    return [line.split(": ")[1].partition("@")[0] for line in told.splitlines() if ": lo:" not in line]


def test_one_apply_and_thirty_pods(installed):
    """The manifest's image, account, probes and mounts do: 30 pods with four interfaces run, and no sandbox failed."""
    assert OURS.exists()
    names = [f"many{n}" for n in range(30)]
    started = time.monotonic()
    installed.apply(*(pod(name, WANTED) for name in names))
    installed.running(names, 200)
    print(f"30 pods ran after {time.monotonic() - started:.0f} s")
    statuses = [installed.status(name) for name in names]
    assert {("eth0", "net1", "net2", "net3")} == {tuple(item["interface"] for item in one) for one in statuses}
    assert 120 == len({address for one in statuses for item in one for address in item["ips"]})
    for item in statuses[1][:3]:  # ptp leads to its own pod alone
        installed.ping(names[0], item["ips"][0])
    assert 0 == failed_sandboxes(installed, "many")
    assert 0 == daemon(installed)["status"]["containerStatuses"][0]["restartCount"]
    assert [] == [line for line in daemon_log(installed).splitlines() if "WARNING" in line and "many" in line]


def test_executables_find_the_programs_of_the_node(installed):
    """A plugin of the node calls iptables of the node: the masquerading rules come with the pod and go with it."""
    masked = {"type": "ptp", "ipMasq": True, "ipam": {"type": "host-local", "subnet": "10.74.0.0/16"}}
    installed.apply(definition("masked", {"cniVersion": "1.0.0", **masked}))
    installed.apply(pod("masked", "masked"))
    installed.running(["masked"], 30)
    assert any("10.74." in rule for rule in traces()["rules"])


def test_rolling_updates_while_pods_come_and_go(installed):
    """The DaemonSet replaces its pod three times: all pods of that time run and go, our conf is never away."""
    over, troubles, absent = threading.Event(), [], []
    rounds = 0

    def churn():
        nonlocal rounds
        while not over.is_set():
            names = [f"churn{rounds}x{n}" for n in range(4)]
            rounds += 1
            try:
                installed.apply(*(pod(name, WANTED) for name in names))
                installed.running(names, 100)
                installed.kubectl("delete", "pods", *names, "--wait=false")
            except AssertionError as trouble:
                troubles.append(str(trouble))

    def watch():
        while not over.wait(0.005):
            if not OURS.exists():
                absent.append(time.monotonic())

    threads = [threading.Thread(target=churn), threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    try:
        seen = {daemon(installed)["metadata"]["uid"]}
        for _ in range(3):
            installed.kubectl(*SYSTEM, "rollout", "restart", "daemonset/multus-py")
            installed.kubectl(*SYSTEM, "rollout", "status", "daemonset/multus-py", "--timeout=120s")
            until(lambda: daemon(installed), seconds=60)
            seen.add(daemon(installed)["metadata"]["uid"])
    finally:
        over.set()
        for thread in threads:
            thread.join()
    print(f"{rounds * 4} pods ran, {failed_sandboxes(installed, 'churn')} tries of a sandbox failed")
    assert ([], []) == (troubles, absent)
    assert 4 == len(seen)


def test_a_conf_that_is_renamed_is_put_back_and_told(installed):
    """What an exclusive CNI does to our conf is undone within seconds, and is an Event of the daemon's pod."""
    OURS.rename(CONF / f"{OURS.name}.cilium_bak")
    until(OURS.exists, lambda: daemon_log(installed), 10)
    ref = daemon(installed)["metadata"]

    def told():
        chosen = f"involvedObject.uid={ref['uid']},reason=ConfPutBack"
        return json.loads(installed.kubectl(*SYSTEM, "get", "events", "--field-selector", chosen, "-o", "json"))[
            "items"
        ]

    until(told, lambda: daemon_log(installed))
    (event,) = told()
    assert ("Warning", ref["name"]) == (event["type"], event["involvedObject"]["name"])
    assert f"renamed to {OURS.name}.cilium_bak" in event["message"]
    assert not list(CONF.glob("*.cilium_bak"))
    installed.apply(pod("after", WANTED))
    installed.running(["after"])
    assert 4 == len(installed.status("after"))


def test_uninstalled_node_by_node(installed, bare):
    """First the command, then the DaemonSet: pods start and end all the time, and nothing at all is left."""
    old, new = [f"old{n}" for n in range(6)], [f"new{n}" for n in range(6)]
    installed.apply(*(pod(name, WANTED) for name in old))
    installed.running(old)
    assert "6 sandboxes are left" in on_the_node(installed, *UNINSTALL)
    assert (False, True) == (OURS.exists(), SHIM.exists())
    installed.apply(*(pod(name) for name in new))
    installed.running(new)
    assert 4 == len(interfaces(installed, old[0]))
    assert ["eth0"] == interfaces(installed, new[0])
    installed.kubectl("delete", "pods", *old, "--wait=false")
    on_the_node(installed, *UNINSTALL, "--drain", "--timeout", "100")
    assert not SHIM.exists()
    installed.kubectl(*SYSTEM, "delete", "-f", "-", stdin=MANIFEST)
    until(lambda: daemon(installed) is None, seconds=60)
    delete_pods(installed)
    until(lambda: traces() == bare, lambda: f"{bare} became {traces()}", 60)
    apply(installed)
    until(OURS.exists, lambda: daemon_log(installed), 20)


def test_the_daemonset_is_deleted_at_once(installed):
    """Its conf goes with it and pods start with the default network; the next DaemonSet frees what had to stay."""
    installed.apply(pod("old", WANTED))
    installed.running(["old"])
    installed.kubectl(*SYSTEM, "delete", "daemonset", "multus-py")
    until(lambda: not OURS.exists(), lambda: daemon_log(installed), 40)
    until(lambda: daemon(installed) is None, seconds=60)
    installed.apply(pod("new"))
    installed.running(["new"])
    assert ["eth0"] == interfaces(installed, "new")
    delete_pods(installed)
    assert [path.name for path in (STATE / "multus" / "attachments").iterdir()], "nobody was there to free it"
    apply(installed)
    until(lambda: not pods_traces()["state"], lambda: f"{pods_traces()} {daemon_log(installed)}", 90)
