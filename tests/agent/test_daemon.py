# SPDX-License-Identifier: Apache-2.0
"""The daemon and its shim as a runtime meets them: answers, loss of nothing, order, drain."""

import base64
import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from running import ended, until
from stage import namespace

from multus_py.kernel import namespaces, netlink
from multus_py.kube.store import PodRef


def status_of(running, pod="p"):
    """Return the published network-status of a pod."""
    found = running.stage.node().store.pod(PodRef("default", pod))
    return json.loads(found.annotations.get("k8s.v1.cni.cncf.io/network-status", "[]"))


def test_a_pod_comes_and_goes_through_the_shim(running, leftovers):
    """ADD, CHECK, DEL by the real shim: result, status, metrics; nothing left."""
    running.start(metricsPort=19555)
    code, result = running.call("ADD", "p", cniVersion="0.4.0")
    assert (0, "0.4.0", "4") == (code, result["cniVersion"], result["ips"][0]["version"])
    assert ["eth0", "net1", "net2"] == [status["interface"] for status in status_of(running)]
    assert (0, None) == running.call("CHECK", "p")
    assert (0, None) == running.call("STATUS")
    assert (0, None) == running.call("DEL", "p")
    assert [] == leftovers(running)
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:19555/metrics').read().decode())"
    with netlink.open(running.host) as kernel:
        kernel.set_link(kernel.link("lo").index, up=True)
    shown = namespaces.run_in(running.host, lambda: subprocess.check_output([sys.executable, "-c", fetch], text=True))
    assert 'multus_py_requests_total{code="0",path="/cni",verb="ADD"} 1.0' in shown
    assert 'multus_py_delegate_seconds_count{outcome="ok",plugin="macvlan",verb="DEL"} 1.0' in shown
    assert "multus_py_journal_sandboxes 0.0" in shown


def test_an_error_passes_through_untouched(running, leftovers):
    """The delegate's code and text come out of the shim with exit code 1, in the caller's version."""
    running.stage.plugins.plugin("scripted", ADD={"error": {"code": 117, "msg": "no room", "details": "d"}})
    running.start()
    code, error = running.call("ADD", "p", cniVersion="1.0.0")
    assert (1, 117, "1.0.0") == (code, error["code"], error["cniVersion"])
    assert "default/p: network cluster as eth0: plugin scripted: no room" == error["msg"]
    assert [] == leftovers(running)


def body(running, verb, pod="p", config=None, **more):
    """Return a request as multus-cni's shim writes it."""
    call = running.stage.call(verb, pod)
    told = config or {"cniVersion": "0.4.0", "name": "mp", "type": "multus-shim"}
    return {"env": call.environment(), "config": base64.b64encode(json.dumps(told).encode()).decode(), **more}


def test_the_socket_speaks_as_the_originals_does(running):
    """Paths, methods, status codes and bodies of multus-cni: its shim and the dynamic networks controller need them."""
    running.start()
    assert (200, b"") == running.request("POST", "/healthz")
    assert (404, b"") == running.request("GET", "/nothing")
    assert 405 == running.request("GET", "/cni")[0]
    status, text = running.request("POST", "/cni", body(running, "ADD"))
    result = json.loads(text)["Result"]
    assert (200, "1.1.0", "10.88.0.2/16") == (status, result["cniVersion"], result["ips"][0]["address"])
    assert (200, b"") == running.request("POST", "/cni", body(running, "DEL"))
    status, text = running.request("POST", "/cni", body(running, "ADD", "nobody"))
    assert (400, 11) == (status, json.loads(text)["code"])
    for broken in (b"", b"{", b"[]", b'{"env":{}}', b'{"env":{"CNI_COMMAND":1}}', b'{"env":{},"config":"%%"}'):
        status, text = running.request("POST", "/cni", broken)
        assert (400, True) == (status, json.loads(text)["code"] in (4, 6))
    assert 413 == running.request("POST", "/cni", b"", **{"Content-Length": str(1 << 30)})[0]


def test_a_delete_without_a_daemon_is_made_up_for(running, leftovers):
    """Twenty pods are deleted while the daemon is down: ten seconds after it is back nothing is left of them."""
    with ExitStack() as stack:
        pods = {f"c{n}": stack.enter_context(namespace()) for n in range(20)}
        running.start()
        for container, netns in pods.items():
            assert 0 == running.call("ADD", "p", container, netns=netns)[0]
        running.stop(signal.SIGKILL)
        for container, netns in pods.items():
            assert (0, None) == running.call("DEL", "p", container, netns=netns)
        assert 20 == len(running.spooled())
        running.start(ready=False)
        until(lambda: not leftovers(running, *pods.values()), running.log, seconds=10)


def test_a_tombstone_stays_until_its_delete_is_confirmed(running, leftovers):
    """A delegate that refuses keeps it; a damaged one is set aside and holds up nobody."""
    running.start()
    running.call("ADD", "p")
    running.stop()
    running.call("DEL", "p")
    (running.folder / "cni/spool/000-damaged.json").write_text("{")
    running.stage.plugins.plugin("scripted", DEL={"error": {"code": 100, "msg": "not now"}})
    running.start()
    until(lambda: "not now" in running.log(), running.log)
    assert 1 == len([name for name in running.spooled() if name.endswith(".json")])
    running.stage.plugins.plugin("scripted")
    until(lambda: leftovers(running) == ["000-damaged.json.damaged"], running.log)


def test_deletes_of_one_sandbox_are_one_delete(running):
    """A storm of repeated DELs runs the delegates once and answers all."""
    running.stage.plugins.plugin("scripted", DEL={"sleep": 1.0})
    running.start()
    running.call("ADD", "p")
    first = running.shim("DEL", "p")
    until(lambda: running.stage.plugins.calls("scripted", "DEL"))
    storm = [running.shim("DEL", "p") for _ in range(10)]
    assert {(0, None)} == {ended(shim) for shim in [first, *storm]}
    assert 1 == len(running.stage.plugins.calls("scripted", "DEL"))


def test_a_burst_of_adds_keeps_no_delete_waiting(running):
    """DEL and health have their own lane: they are answered while every place for ADD is taken."""
    running.stage.definition("slow", {"cniVersion": "1.0.0", "type": "slow"})
    running.stage.plugins.plugin("slow", ADD={"sleep": 3})
    running.stage.pod("q", "slow")
    with ExitStack() as stack:
        running.start(concurrentAdds=2)
        running.call("ADD", "p")
        adds = [running.shim("ADD", "q", f"q{n}", netns=stack.enter_context(namespace())) for n in range(4)]
        until(lambda: len(running.stage.plugins.calls("slow", "ADD")) == 2)
        started = time.monotonic()
        assert 0 == running.call("DEL", "p")[0]
        assert 200 == running.get("/healthz")[0]
        assert 2 == len(running.stage.plugins.calls("slow", "ADD")), time.monotonic() - started
        assert [0] * 4 == [ended(add)[0] for add in adds]


def test_told_to_end_it_drains(running):
    """SIGTERM: not ready any more, what is under way is finished, the exit code is 0, the socket is gone."""
    running.stage.plugins.plugin("scripted", ADD={"sleep": 1.5})
    running.start()
    add = running.shim("ADD", "p")
    until(lambda: running.stage.plugins.calls("scripted", "ADD"))
    running.process.send_signal(signal.SIGTERM)
    until(lambda: running.get("/readyz")[0] == 500, seconds=2)
    assert 0 == ended(add)[0]
    assert 0 == running.process.wait(15)
    running.process = None
    assert not running.socket.exists()


UNLUCKY = """
import os, signal, sys, threading
from pathlib import Path
from multus_py.entry import daemon

enter, serve, armed = threading.Condition.__enter__, daemon.Daemon.serve, []

def entered(self):
    got = enter(self)
    if armed and threading.current_thread() is threading.main_thread():
        armed.clear()
        os.kill(os.getpid(), signal.SIGTERM)
    return got

def served(self):
    armed.append(True)
    return serve(self)

threading.Condition.__enter__, daemon.Daemon.serve = entered, served
sys.exit(daemon.main(Path(sys.argv[1])))
"""


def test_a_signal_comes_while_any_lock_is_held(running):
    """A SIGTERM that arrives while the main thread holds the lock of an event ends the daemon as any other does."""
    with (running.folder / "log").open("ab") as log:
        command = [sys.executable, "-c", UNLUCKY, str(running.configure())]
        process = namespaces.run_in(running.host, lambda: subprocess.Popen(command, stderr=log))
    try:
        assert 0 == process.wait(20)
    finally:
        process.kill()
        process.wait()


def test_told_to_end_it_does_so_at_once(running):
    """Nothing is under way: it takes no second, however often it is told, also to read its config again."""
    running.start()
    for _ in range(300):
        running.process.send_signal(signal.SIGHUP)
    started = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert 0 == running.stop(signal.SIGINT)
    assert time.monotonic() - started < 2.5


def test_status_and_add_wait_for_the_daemon_and_say_so(running):
    """STATUS is code 50 while nobody serves; ADD waits and succeeds when the daemon comes."""
    code, error = running.call("STATUS", readinessTimeout=0.3)
    assert (1, 50) == (code, error["code"])
    code, error = running.call("ADD", "p", readinessTimeout=0.3)
    assert (1, 11) == (code, error["code"])
    add = running.shim("ADD", "p")
    running.start()
    assert 0 == ended(add)[0]


def test_the_daemon_killed_in_a_loop_loses_nothing(running, leftovers):
    """kill -9 again and again during ADDs and DELs: journal and node agree, and after all DELs nothing is left."""
    with ExitStack() as stack:
        pods = {f"k{n}": stack.enter_context(namespace()) for n in range(12)}
        running.start()
        for turn in range(8):
            calls = [
                running.shim(verb, "p", container, netns=netns, readinessTimeout=20)
                for n, (container, netns) in enumerate(pods.items())
                for verb in (["ADD"] if (n + turn) % 3 else ["DEL"])
            ]
            time.sleep(0.05 + 0.06 * turn)
            running.stop(signal.SIGKILL)
            running.start(ready=False)
            for call in calls:
                ended(call)
        for container, netns in pods.items():
            known = {item.ifname for entry in _entries(running, container) for item in entry.attachments}
            with netlink.open(netns) as kernel:
                there = {link.name for link in kernel.links()} - {"lo"}
            assert there <= known, (container, there, known)
        for container, netns in pods.items():
            assert (0, None) == running.call("DEL", "p", container, netns=netns)
        until(lambda: not leftovers(running, *pods.values()), lambda: str(leftovers(running, *pods.values())))


def _entries(running, container):
    with running.stage.node().journal.lock_sandbox(container, "eth0") as page:
        return [page.entry] if page.entry else []


def test_dead_sandboxes_are_released(running, leftovers):
    """A namespace that vanished without DEL: address, journal and results are freed at the next look."""
    running.start(reconcileInterval=1)
    with namespace() as gone:
        assert 0 == running.call("ADD", "p", "dead", netns=gone)[0]
    until(lambda: not leftovers(running), running.log)
    assert "released" in running.log()


def test_the_config_is_read_again(running):
    """A change of the file counts from the next call on; a broken file changes nothing; SIGHUP asks for it."""
    running.start()
    (running.folder / "daemon.json").write_text("{")
    until(lambda: "stays as it was" in running.log(), running.log)
    running.configure(delegates=[{"cniVersion": "1.0.0", "name": "new", "type": "scripted"}])
    running.process.send_signal(signal.SIGHUP)
    until(lambda: "config read again" in running.log(), running.log)
    assert 0 == running.call("ADD", "p")[0]
    assert "new" == status_of(running)[0]["name"]


def test_unknown_keys_are_named(running):
    """A mistyped key is told at start."""
    running.start(mystery=1, conectionLimit=3)
    assert "conectionLimit, mystery" in running.log()


def test_a_second_daemon_is_refused(running):
    """Two daemons on one socket would both think that they own the node."""
    running.start()
    command = [sys.executable, "-c", "import multus_py.entry.daemon as d; d._LOCK_WAIT = 0.2; d.main(d.Path(%r))"]
    command[-1] %= str(running.folder / "daemon.json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (1, True) == (done.returncode, "another daemon serves" in done.stderr)


def test_executables_run_in_the_chroot(running, tmp_path):
    """chrootDir: found and executed in the host's root, with its PATH, CNI_NETNS as the runtime said it."""
    root = tmp_path / "root"
    (root / "host/bin").mkdir(parents=True)
    for mount in ("usr", "lib", "lib64", "bin", "proc", "dev", "run", "tmp", "root", "etc"):
        (root / mount).mkdir()
    program = root / "host/bin/inroot"
    program.write_text(
        "#!/bin/busybox sh\nread config\n[ -e /inside ] || exit 3\n"
        'case $PATH in *:/usr/sbin:*) ;; *) exit 4 ;; esac\nprintf \'{"cniVersion":"1.0.0"}\'\n'
    )
    program.chmod(0o755)
    (root / "inside").touch()
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    running.stage.definition("r", {"cniVersion": "1.0.0", "type": "inroot"})
    running.stage.pod("q", "r")
    running.start(
        chrootDir=str(root), binDir="/host/bin", delegates=[{"cniVersion": "1.0.0", "name": "x", "type": "passthru"}]
    )
    code, answer = running.call("ADD", "q")
    assert 0 == code, answer
    assert 0 == running.call("DEL", "q")[0]


def test_native_pools_are_in_the_nodes_root(running, tmp_path):
    """chrootDir: host-local's folder is the node's, links of the node followed, as the executable would find it."""
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    ipam = {"type": "host-local", "subnet": "10.71.0.0/24", "dataDir": "/var/run/pools"}
    cluster = {"cniVersion": "1.0.0", "name": "x", "type": "bridge", "bridge": "br0", "ipam": ipam}
    running.start(chrootDir=str(root), delegates=[cluster])
    running.stage.pod("q")
    code, answer = running.call("ADD", "q")
    assert 0 == code, answer
    assert (root / "run/pools/x/10.71.0.2").read_text().startswith("c1")
    assert 0 == running.call("CHECK", "q")[0]
    assert 0 == running.call("DEL", "q")[0]
    assert not (root / "run/pools/x/10.71.0.2").exists()


def test_it_reaps_what_others_leave_to_process_1(running):
    """As process 1 of a container it collects orphans: no zombie stays."""
    script = "sleep 0.2 & exit 0"
    alone = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
    command = [*alone, sys.executable, "-m", "multus_py.cli.main", "daemon", "--config", str(running.configure())]
    log = (running.folder / "log").open("ab")
    running.process = namespaces.run_in(running.host, lambda: subprocess.Popen(command, stdout=log, stderr=log))
    log.close()
    until(lambda: running.get("/readyz")[0] == 200, running.log)
    inside = int(subprocess.check_output(["pgrep", "-P", str(running.process.pid)]).split()[0])
    enter = ["nsenter", "-t", str(inside), "-p", "-m"]
    subprocess.run([*enter, "setsid", "-f", "sh", "-c", script], check=True)
    time.sleep(0.5)
    states = subprocess.check_output([*enter, "ps", "-eo", "stat,comm"], text=True)
    assert not [line for line in states.splitlines() if line.startswith("Z")], states


@pytest.mark.parametrize("path", ["/cni", "/delegate"])
def test_before_it_is_ready_only_delete_is_served(running, path):
    """Our shim is told 503, the original's an error of code 11; DEL needs no store and is done."""
    running.options["kubeconfig"] = str(running.folder / "none.kubeconfig")
    running.options["manifests"] = ""
    (running.folder / "none.kubeconfig").write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "x", "users": [{"name": "x", "user": {}}],
        "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }))  # fmt: skip
    running.start(ready=False)
    assert 503 == running.request("POST", path, body(running, "ADD"), **{"X-Multus-Py-Shim": "1"})[0]
    status, text = running.request("POST", path, body(running, "ADD"))
    assert (400, 11) == (status, json.loads(text)["code"])
    assert 500 == running.get("/readyz")[0]
    assert (0, None) == running.call("DEL", "p")


def test_a_late_delete_does_not_hit_a_newer_attachment(running, leftovers):
    """Some runtimes use a container id again: a tombstone older than the sandbox's journal page is done with."""
    running.start()
    running.call("ADD", "p")
    running.stop()
    running.call("DEL", "p")
    (tombstone,) = (running.folder / "cni/spool").iterdir()
    body = json.loads(tombstone.read_text())
    tombstone.write_text(json.dumps({**body, "since": body["since"] - 3600}))
    running.start()
    until(lambda: not running.spooled(), running.log)
    assert (0, None) == running.call("CHECK", "p")
    running.call("DEL", "p")
    assert [] == leftovers(running)
