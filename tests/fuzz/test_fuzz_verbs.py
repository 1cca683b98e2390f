# SPDX-License-Identifier: Apache-2.0
"""The verbs in this process, fed with what definition, annotation, plugin, disk and runtime may hold."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hostile import RAISES, TEXTS, VALUES, Faulty, near, rounds, texts
from hypothesis import given
from hypothesis import strategies as st
from stage import Stage, namespace

from multus_py.cni import call as calls
from multus_py.cni.errors import CniError
from multus_py.config import plugin as configs
from multus_py.entry import plugin
from multus_py.kernel import namespaces, netlink
from multus_py.verbs import handlers
from multus_py.verbs.node import Node

IPAM = {
    "type": "host-local",
    "dataDir": "ipam",
    "ranges": [[{"subnet": "10.61.0.0/16"}]],
    "routes": [{"dst": "10.9.0.0/16"}],
}
BRIDGE = {
    "cniVersion": "1.1.0", "name": "n", "plugins": [
        {"type": "bridge", "bridge": "br0", "isGateway": True, "mtu": 1400, "capabilities": {"ips": True, "mac": True},
         "ipam": IPAM},
        {"type": "faulty", "raises": {}},
    ],
}  # fmt: skip
NETWORKS = [{"name": "a", "interface": "net1"}, {"name": "b", "namespace": "default", "mac": "02:00:00:00:00:07"}]
FOLDERS = frozenset(("cniDir", "confDir", "binDir", "manifests", "kubeconfig"))
ARGS = st.one_of(
    st.just("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p"),
    TEXTS.map(lambda text: f"K8S_POD_NAME={text};K8S_POD_NAMESPACE=default"),
    st.tuples(TEXTS, TEXTS).map(lambda two: f"K8S_POD_NAMESPACE={two[0]};K8S_POD_NAME=p;K8S_POD_UID={two[1]}"),
    st.lists(TEXTS | st.just("K8S_POD_NAME=p"), max_size=4).map(";".join),
)


@dataclass
class Ground:
    """A host, a pod, and a folder that is the working directory: relative paths of hostile configs stay in it."""

    stage: Stage
    host: str

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.stage.folder

    def tell(self, verb: str, config: Any, args: str = "", container: str = "c1", **env: str) -> CniError | None:
        """Run the handler of a verb as the plugin process would; return its error, which must be a `CniError`."""
        try:
            namespaces.run_in(self.host, lambda: self._tell(verb, config, args, container, env))
        except CniError as error:
            json.dumps(error.to_json("1.1.0"))
            return error
        return None

    def _tell(self, verb: str, config: Any, args: str, container: str, env: dict[str, str]) -> None:
        environment = {
            "CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": self.stage.netns, "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.folder / "bin"), "CNI_ARGS": args, **env,
        }  # fmt: skip
        call = calls.parse(
            environment, (config if isinstance(config, str) else json.dumps(config)).encode(errors="surrogatepass")
        )
        settings = configs.parse(call.config)
        handlers.HANDLERS[call.verb](replace(call, path=settings.path(call.path)), self._node(settings))

    def _node(self, settings: configs.MultusConfig) -> Node:
        clock = itertools.count(step=5)  # nobody waits in earnest
        node = plugin.assemble(settings, {"PATH": os.environ["PATH"]})
        return replace(node, sleep=lambda seconds: None, monotonic=lambda: float(next(clock)))

    def left(self) -> list[str]:
        """Return what is left of native attachments: interfaces of the pod and reserved addresses."""
        with netlink.open(self.stage.netns) as kernel:
            links = sorted(kernel.link_names() - {"lo"})
        pools = self.folder / "ipam"
        files = [path.name for path in pools.rglob("*") if path.is_file()] if pools.is_dir() else []
        return links + sorted(name for name in files if name[0].isdigit() or ":" in name)

    def clear(self) -> None:
        """Take away by hand what an example left."""
        with netlink.open(self.stage.netns) as kernel:
            for link in kernel.links():
                if link.name != "lo":
                    kernel.delete_link(link.index)
        with suppress(CniError), netlink.open(self.host) as kernel:
            for link in kernel.links():
                if link.name != "lo":
                    kernel.delete_link(link.index)
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def ground(elsewhere: Path, faulty: Faulty) -> Iterator[Ground]:
    """Return a place for hostile calls."""
    with namespace() as host, namespace() as pod:
        yield Ground(Stage(elsewhere, pod), host)


def _executable(folder: Path, name: str, answers: dict[str, tuple[bytes, bytes, int]]) -> None:
    """Write an executable that prints bytes to both outputs and ends with a status, by verb; -n: by a signal."""
    folder.mkdir(exist_ok=True)
    for verb, (out, err, _) in answers.items():
        (folder / f"{name}.{verb}.out").write_bytes(out)
        (folder / f"{name}.{verb}.err").write_bytes(err)
    ends = "".join(
        f"{verb}) {f'kill -{-status} $$; sleep 1' if status < 0 else f'exit {status}'};; "
        for verb, (*_, status) in answers.items()
    )
    program = folder / name
    program.write_text(
        '#!/bin/sh\ncat >/dev/null\ncat "$0.$CNI_COMMAND.out"\ncat "$0.$CNI_COMMAND.err" >&2\n'
        f"case $CNI_COMMAND in {ends}esac\n"
    )
    program.chmod(0o755)


GC = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}


@given(data=st.data())
@rounds(60)
def test_any_definition_and_annotation(ground: Ground, data: st.DataObject) -> None:
    """Whatever a pod and a definition say, only CniError leaves a verb, and DEL of what failed takes all of it away."""
    ground.clear()
    stage = ground.stage
    stage.definition("a", data.draw(texts(BRIDGE), "definition a"))
    stage.definition("b", data.draw(texts(BRIDGE["plugins"][0] | {"cniVersion": "0.4.0", "name": "m"}), "definition b"))
    stage.pod("p", data.draw(texts(NETWORKS) | TEXTS, "networks"),
              **{"v1.multus-cni.io/default-network": data.draw(st.just("") | TEXTS, "default")})  # fmt: skip
    config = stage.config(delegates=[{"cniVersion": "1.0.0", "name": "d", "plugins": [{"type": "faulty"}]}])
    args = data.draw(ARGS, "args")
    _live_and_die(ground, lambda verb, **more: ground.tell(verb, config | more, args))


@given(data=st.data())
@rounds(100)
def test_any_config_of_ours(ground: Ground, data: st.DataObject) -> None:
    """Whatever stands in our own config, only CniError leaves a verb, and DEL of what failed takes all of it away."""
    ground.clear()
    stage = ground.stage
    (stage.folder / "file").write_text("no folder")
    stage.pod("p", "")
    good = stage.config(
        delegates=[BRIDGE], runtimeConfig={"ips": ["10.61.0.9/16"]}, readinessTimeout=0.1, execTimeout=2,
        globalNamespaces="default", systemNamespaces=["kube-system"], namespaceIsolation=False, defaultNetworks=[],
        delegateBackend="auto", logOptions={"maxAge": 1}, allowedPlugins=["bridge", "faulty", "host-local"],
    )  # fmt: skip
    kept = frozenset() if data.draw(st.booleans(), "folders too") else FOLDERS
    config = data.draw(near(good, kept | {"kubeconfig"}, 3), "config")
    _live_and_die(ground, lambda verb, **more: ground.tell(verb, {**config, **more}))


def _live_and_die(ground: Ground, tell: Callable[..., CniError | None]) -> None:
    """Tell every verb in turn; after DEL nothing is left, and it fails only for what came to be."""
    failed = tell("ADD")
    if failed:
        assert not ground.left(), failed
    for verb in ("CHECK", "STATUS"):
        tell(verb)
    tell("GC", **GC)
    trouble = tell("DEL")
    if failed and failed.code not in (4, 6) and trouble:
        # The call itself, or the node, is beyond reading for DEL as it was for ADD.
        assert trouble.msg == failed.msg or trouble.code in (1, 3, 5, 7), trouble
    if not trouble:
        assert not ground.left()
    tell("GC", **{"cni.dev/valid-attachments": []})


@given(valid=VALUES | st.lists(st.fixed_dictionaries({"containerID": TEXTS, "ifname": TEXTS}), max_size=3))
@rounds(60)
def test_any_list_of_valid_attachments(ground: Ground, valid: Any) -> None:
    """Whatever a runtime lists at GC, nothing but CniError leaves it, and none of the kind that nobody foresaw."""
    ground.clear()
    config = ground.stage.config(delegates=[BRIDGE])
    assert ground.tell("ADD", config) is None
    trouble = ground.tell("GC", {**config, "cni.dev/valid-attachments": valid})
    assert trouble is None or trouble.code != 999, trouble
    assert ground.tell("DEL", config) is None
    assert not ground.left()


RESULT = {
    "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "x", "mtu": 1}],
    "ips": [{"address": "10.0.0.2/8", "gateway": "10.0.0.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "table": 5}],
    "dns": {"nameservers": ["1.1.1.1"], "search": []},
}  # fmt: skip
PRINTED = st.binary(max_size=30) | texts(RESULT).map(lambda text: text.encode(errors="surrogatepass")) | texts(
    {"cniVersion": "1.0.0", "code": 11, "msg": "m", "details": "d"}
).map(lambda text: text.encode(errors="surrogatepass"))  # fmt: skip
ANSWER = st.tuples(PRINTED, st.binary(max_size=8), st.sampled_from((0, 0, 0, 1, 3, 255, -9, -11, -40, -64)))


@given(answers=st.fixed_dictionaries(dict.fromkeys(("ADD", "CHECK", "DEL", "STATUS", "GC"), ANSWER)))
@rounds(40)
def test_any_answer_of_an_executable(ground: Ground, answers: dict[str, tuple[bytes, bytes, int]]) -> None:
    """Whatever an executable prints and however it ends, only CniError leaves a verb, and DEL works without it."""
    ground.clear()
    _executable(ground.folder / "bin", "odd", answers)
    chain = {**BRIDGE, "plugins": [BRIDGE["plugins"][0], {"type": "odd"}, {"type": "faulty"}]}
    config = ground.stage.config(delegates=[chain], execTimeout=5)
    failed = ground.tell("ADD", config)
    for verb in ("CHECK", "STATUS"):
        if trouble := ground.tell(verb, config):
            assert trouble.code != 999 or not trouble.msg.startswith("internal"), trouble
    assert failed is None or "internal error" not in failed.msg, failed
    trouble = ground.tell("DEL", config)
    assert trouble is None or not failed, trouble
    assert trouble is None or "internal error" not in trouble.msg, trouble
    assert not ground.left()


@given(first=RAISES, second=RAISES)
@rounds(70)
def test_any_exception_of_a_delegate(ground: Ground, first: dict[str, str], second: dict[str, str]) -> None:
    """Whatever a native delegate raises, ADD takes the others back and DEL releases them; only CniError leaves."""
    ground.clear()
    plugins = [BRIDGE["plugins"][0], {"type": "faulty", "raises": first}, {"type": "faulty", "raises": second}]
    config = ground.stage.config(delegates=[{**BRIDGE, "plugins": plugins}])
    failed = ground.tell("ADD", config)
    assert bool(failed) == any({"ADD", "parse"} & raises.keys() for raises in (first, second))
    for verb in ("CHECK", "STATUS"):
        ground.tell(verb, config)
    trouble = ground.tell("DEL", config)
    refused = any("parse" in raises for raises in (first, second))
    came_to_be = itertools.takewhile(lambda raises: not refused and "ADD" not in raises, (first, second))
    assert bool(trouble) == any("DEL" in raises for raises in came_to_be), trouble
    assert not ground.left()


@given(data=st.data())
@rounds(80)
def test_any_state_on_disk(ground: Ground, data: st.DataObject) -> None:
    """Whatever stands in the node's folders, only CniError leaves a verb."""
    ground.clear()
    config = ground.stage.config(delegates=[BRIDGE])
    if data.draw(st.booleans(), "attached"):
        assert ground.tell("ADD", config) is None
    for _ in range(data.draw(st.integers(1, 2), "spoiled")):
        _spoil(ground.folder, data)
    for verb in data.draw(st.permutations(("ADD", "CHECK", "STATUS", "DEL")), "verbs"):
        ground.tell(verb, config)
    ground.tell("GC", {**config, "cni.dev/valid-attachments": []})
    ground.tell("DEL", config)


STATE = tuple(f"cni/{name}" for name in (
    "", "attachments", "attachments/c1@eth0", "attachments/x", "attachments/a@b", "attachments/\udcff@eth0", "results",
    "results/n-c1-eth0", "results/sha256-x", "results/n-c1-eth1", "c1",
)) + tuple(f"ipam/{name}" for name in ("", "n", "n/10.61.0.2", "n/lock", "n/last_reserved_ip.0", "n/x"))  # fmt: skip
KINDS = ("bytes", "json", "folder", "link", "gone", "bent", "pipe")


def _spoil(folder: Path, data: st.DataObject) -> None:
    """Write any bytes over a state file, or put a folder, a link or a pipe in its place."""
    path = folder / data.draw(st.sampled_from(STATE), "path")
    kind = data.draw(st.sampled_from(KINDS), "kind")
    some, at, skipped = data.draw(st.binary(max_size=40)), data.draw(st.integers(0, 800)), data.draw(st.integers(0, 9))
    words, target = data.draw(VALUES), data.draw(st.sampled_from(("nowhere", "c1@eth0", "/dev/null", "/proc/self/mem")))
    before = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:  # something else was put where its folder was
        return
    if kind in ("bytes", "bent"):
        path.write_bytes(before[:at] + some + before[at + skipped :] if kind == "bent" else some)
    elif kind == "json":
        path.write_text(json.dumps(words))
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
