# SPDX-License-Identifier: Apache-2.0
"""A lab: throw-away pods that play a node. It is the runtime here, and calls the launcher as containerd would.

The lab's own network namespace is the host: bridges and parents of macvlan live there, and vanish with it. The
executables see a `/var/lib/cni` of the lab's own, so that no address of the machine's real pools is touched.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from multus_py import netlink
from multus_py.cni import conflist, names
from multus_py.cni.call import json_object
from multus_py.cni.errors import CniError, Code, PluginError, gathered
from multus_py.config import TYPE
from multus_py.entry import install
from multus_py.kube.manifests import SUFFIXES, Manifests
from multus_py.kube.store import Pod, PodRef
from multus_py.undo import Undo

_ROOT = Path("/run/multus-py/lab")
_NETNS = Path("/run/netns")
_SHARED = Path("/var/lib/cni")  # where executables keep leases: host-local's default dataDir is below it
_SYSTEM_PLUGINS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CALL_SECONDS = 180
# Types that put a pod's interface on a link of the host, which their key `master` names.
_ON_A_MASTER = ("macvlan", "macvtap", "ipvlan", "vlan")
_IFNAME = "eth0"

_DEFAULT_NETWORK = {
    "cniVersion": "1.0.0",
    "name": "pod-network",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]},
        }
    ],
}


@dataclass(frozen=True)
class Sandbox:
    """A pod that was, or was about to be, attached; *result* is what ADD answered, None when it did not."""

    namespace: str
    pod: str
    uid: str
    container_id: str
    netns: str
    result: Mapping[str, Any] | None = None

    @property
    def ref(self) -> PodRef:
        """The pod."""
        return PodRef(self.namespace, self.pod, self.uid)


@dataclass(frozen=True)
class Lab:
    """Where a lab keeps what: everything below *root*, and namespaces whose names begin with its own."""

    name: str

    def __post_init__(self) -> None:
        if not names.is_label(self.name) or len(self.name) > 40:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"{self.name!r} cannot name a lab",
                "lower-case letters, digits, '-', at most 40",
            )

    @property
    def root(self) -> Path:
        """The lab's folder."""
        return _ROOT / self.name

    @property
    def host(self) -> Path:
        """The network namespace that plays the host."""
        return _NETNS / f"{self.name}.host"

    @property
    def folders(self) -> install.Folders:
        """The folders of executables and of conf files."""
        return install.Folders(self.root / "bin", self.root / "net.d")

    @property
    def manifests(self) -> Manifests:
        """The pods and definitions that the lab was given, with what the plugin published."""
        return Manifests(self.root / "manifests", self.root / "cni" / "pods")

    def netns(self, pod: Pod) -> Path:
        """Return the network namespace of a pod; a namespace's name has no dot, so two pods never share one."""
        return _NETNS / f"{self.name}.{pod.namespace}.{pod.name}"

    def sandboxes(self) -> list[Sandbox]:
        """Return the pods of the lab, those half-made too, by namespace and name."""
        return [
            Sandbox(**json_object(path.read_bytes(), str(path))) for path in sorted((self.root / "pods").glob("*.json"))
        ]


# --- up ---------------------------------------------------------------------------------------------------------------


def prepare(lab: Lab, files: Sequence[Path], primary: Path | None, backend: str | None) -> None:
    """Make the lab, or add to it: manifests, host namespace, launcher, conf, parents. One that fails is removed."""
    sources = list(_sources(files))
    with Undo() as undo:
        if not lab.root.exists():
            undo.add(down, lab)
        for name in ("bin", "net.d", "manifests", "cni", "pods", "var-lib-cni"):
            (lab.root / name).mkdir(parents=True, exist_ok=True)
        _take_in(lab, sources, undo)
        if not lab.host.exists():
            _make_namespace(str(lab.host))
        _install(lab, primary, backend)
        _make_parents(lab)
        undo.keep()


def _sources(files: Sequence[Path]) -> Iterator[Path]:
    for given in files:
        if given.is_dir():
            inside = sorted(path for path in given.iterdir() if path.suffix in SUFFIXES and path.is_file())
            if not inside:
                raise CniError(Code.IO, f"no manifest in folder {given}", f"manifests end in {', '.join(SUFFIXES)}")
            yield from inside
        elif given.is_file():
            yield given
        else:
            raise CniError(Code.IO, f"{given} does not exist", "name a manifest, or a folder of manifests")


def _take_in(lab: Lab, sources: Sequence[Path], undo: Undo) -> None:
    """Copy manifests into the lab and read them together, so that what is wrong is told before any pod is made."""
    for source in sources:
        place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]
        suffix = source.suffix if source.suffix in SUFFIXES else ".yaml"
        target = lab.root / "manifests" / f"{source.stem}-{place}{suffix}"
        if target.exists():
            undo.add(target.write_bytes, target.read_bytes())
        else:
            undo.add(_forget_file, target)
        target.write_bytes(source.read_bytes())
    if troubles := lab.manifests.troubles():
        raise CniError(
            Code.INVALID_CONFIG, f"cannot read the manifests: {'; '.join(troubles)}", "see: multus-py lint FILE"
        )


def _forget_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def _install(lab: Lab, primary: Path | None, backend: str | None) -> None:
    installed = _conf(lab)
    if installed.exists() and primary is None and backend is None:
        return
    if primary is not None:
        install.read_conf(primary)
        for old in lab.folders.conf.glob("10-*"):
            old.unlink()
        shutil.copyfile(primary, lab.folders.conf / f"10-{primary.name}")
    elif not any(lab.folders.conf.glob("10-*")):
        (lab.folders.conf / "10-pod-network.conflist").write_text(json.dumps(_DEFAULT_NETWORK, indent=2))
    keys = {"cniDir": str(lab.root / "cni"), "delegateBackend": backend or "auto", "logFile": str(lab.root / "log")}
    install.install(install.Order(lab.folders, {"manifests": lab.root / "manifests"}, keys=keys))


def _conf(lab: Lab) -> Path:
    return lab.folders.conf / f"00-{TYPE}.conflist"


def _make_parents(lab: Lab) -> None:
    """Make the links that definitions name as `master` and nobody else makes: one end of a cable, with carrier."""
    plugins = list(_plugins(lab))
    bridges = {str(plugin.get("bridge", "cni0")) for plugin in plugins if plugin.get("type") == "bridge"}
    wanted = {
        str(plugin["master"])
        for plugin in plugins
        if plugin.get("type") in _ON_A_MASTER and plugin.get("master") and not plugin.get("linkInContainer")
    }
    with netlink.open(str(lab.host)) as host:
        for master in sorted(wanted - bridges):
            names.interface(master, "master", Code.INVALID_CONFIG)
            if host.find_link(master) is None:
                _lay_cable(host, master)


def _plugins(lab: Lab) -> Iterator[Mapping[str, Any]]:
    texts = [definition.config for definition in lab.manifests.definitions() if definition.config]
    texts += [path.read_text() for path in lab.folders.conf.glob("10-*")]
    for text in texts:
        # A config that cannot be read is told when a pod asks for it, with the pod's name.
        with suppress(CniError):
            yield from conflist.parse(json_object(text), default_name="network").plugins


def _lay_cable(host: netlink.Netlink, name: str) -> None:
    far_end = "far" + hashlib.sha256(name.encode()).hexdigest()[:10]
    host.create_veth(name, far_end)
    host.set_link(host.link(far_end).index, up=True)


def _make_namespace(path: str) -> None:
    netlink.create_namespace(path)
    # Every runtime sets it up before it calls a plugin, containerd with the plugin `loopback`.
    with netlink.open(path) as inside:
        inside.set_link(inside.link("lo").index, up=True)


def waiting(lab: Lab) -> list[Pod]:
    """Return the pods of the manifests that are not attached yet."""
    attached = {(box.namespace, box.pod) for box in lab.sandboxes() if box.result is not None}
    return [pod for pod in lab.manifests.pods() if (pod.namespace, pod.name) not in attached]


def attach(lab: Lab, pod: Pod) -> Sandbox:
    """Make the pod's namespace and have it attached; a pod that fails leaves nothing behind."""
    box = Sandbox(pod.namespace, pod.name, pod.uid, uuid4().hex, str(lab.netns(pod)))
    with Undo() as undo:
        undo.add(detach, lab, box)
        _record(lab, box)
        _make_namespace(box.netns)
        done = Sandbox(**{**asdict(box), "result": json_object(_call(lab, "ADD", box), "the plugin's result")})
        _record(lab, done)
        undo.keep()
    return done


def _record_path(lab: Lab, box: Sandbox) -> Path:
    return lab.root / "pods" / f"{box.namespace}.{box.pod}.json"


def _record(lab: Lab, box: Sandbox) -> None:
    _record_path(lab, box).write_text(json.dumps(asdict(box), indent=2))


# --- down -------------------------------------------------------------------------------------------------------------


def detach(lab: Lab, box: Sandbox) -> None:
    """Have the pod detached and remove its namespace; both are tried, the troubles are raised together."""
    troubles = []
    try:
        if (lab.folders.bin / TYPE).exists() and lab.host.exists():
            _call(lab, "DEL", box)
    except CniError as trouble:
        troubles.append(trouble)
    try:
        netlink.remove_namespace(box.netns)
    except CniError as trouble:
        troubles.append(trouble)
    _forget_file(_record_path(lab, box))
    if troubles:
        raise gathered(f"pod {box.ref} was not taken down cleanly", troubles)


def down(lab: Lab) -> list[str]:
    """Remove everything of the lab, however much there is; return what was removed, raise what went wrong."""
    removed, troubles = [], []
    for path in sorted((lab.root / "pods").glob("*.json")):
        try:
            box = Sandbox(**json_object(path.read_bytes(), str(path)))
            detach(lab, box)
            removed.append(f"pod {box.ref}")
        except (CniError, TypeError) as trouble:
            # A record cut short (TypeError: keys are missing) still has its namespace, found by name below.
            troubles.append(trouble if isinstance(trouble, CniError) else CniError(Code.DECODE, f"{path}: {trouble}"))
    for left in [*sorted(_NETNS.glob(f"{lab.name}.*.*")), *_NETNS.glob(lab.host.name)]:
        try:
            netlink.remove_namespace(str(left))
            removed.append(f"namespace {left.name}")
        except CniError as trouble:
            troubles.append(trouble)
    _remove_folders(lab)
    if troubles:
        raise gathered(f"lab {lab.name} is gone, but not everything went well", troubles)
    return removed


def _remove_folders(lab: Lab) -> None:
    made_shared = (lab.root / "made-var-lib-cni").exists()
    shutil.rmtree(lab.root, ignore_errors=True)
    # Only when empty: somebody else may have begun to use it, or another lab may still be up.
    for folder in (lab.root.parent, lab.root.parent.parent, *([_SHARED] if made_shared else [])):
        with suppress(OSError):
            folder.rmdir()


# --- being the runtime ------------------------------------------------------------------------------------------------


def _call(lab: Lab, verb: str, box: Sandbox) -> bytes:
    """Run the launcher in the lab's host namespace as a runtime does, and return what it printed."""
    env = {
        "PATH": _PATH,
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": box.container_id,
        "CNI_NETNS": box.netns,
        "CNI_IFNAME": _IFNAME,
        "CNI_PATH": ":".join([str(lab.folders.bin), *_SYSTEM_PLUGINS]),
        "CNI_ARGS": (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={box.namespace};K8S_POD_NAME={box.pod};"
            f"K8S_POD_INFRA_CONTAINER_ID={box.container_id};K8S_POD_UID={box.uid}"
        ),
    }
    config = json.dumps(_config(lab, box)).encode()
    command = _with_own_leases(lab, [str(lab.folders.bin / TYPE)])
    try:
        done = netlink.visit(str(lab.host), lambda: _run(command, env, config))
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise CniError(Code.IO, f"cannot run the launcher for {verb} of pod {box.ref}: {cause}") from cause
    if done.returncode:
        raise _trouble(done)
    return done.stdout


def _run(command: Sequence[str], env: Mapping[str, str], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, env=env, input=stdin, capture_output=True, timeout=_CALL_SECONDS, check=False)


def _with_own_leases(lab: Lab, command: list[str]) -> list[str]:
    """Return *command* so that it sees a folder of the lab as /var/lib/cni: a bind mount that only it sees."""
    if not _SHARED.exists():
        _SHARED.mkdir(parents=True)
        (lab.root / "made-var-lib-cni").touch()
    own = str(lab.root / "var-lib-cni")
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "lab", own, str(_SHARED), *command]


def _config(lab: Lab, box: Sandbox) -> dict[str, Any]:
    """Return what a runtime of CNI 1.1 sends: the plugin's config with name, version and the last result."""
    conf = conflist.parse(install.read_conf(_conf(lab)))
    body = {**conf.plugins[0], "name": conf.name, "cniVersion": conf.version}
    return body if box.result is None else {**body, "prevResult": box.result}


def _trouble(done: subprocess.CompletedProcess[bytes]) -> CniError:
    try:
        body = json_object(done.stdout, "the plugin's answer")
    except CniError:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        return CniError(Code.INTERNAL, f"the plugin failed with exit status {done.returncode}", said)
    return PluginError(int(body.get("code", Code.INTERNAL)), str(body.get("msg")), str(body.get("details", "")))


def run_inside(lab: Lab, pod: str, command: Sequence[str]) -> int:
    """Run *command* in the network namespace of a pod, `name` or `namespace/name`, and return its exit status."""
    box = find(lab, pod)
    try:
        return netlink.visit(box.netns, lambda: subprocess.run(command, check=False).returncode)
    except OSError as cause:
        raise CniError(Code.IO, f"cannot run {command[0]!r} in pod {box.ref}: {cause.strerror}") from cause


def find(lab: Lab, pod: str) -> Sandbox:
    """Return the pod called `name` or `namespace/name`; code 4 lists those that are there."""
    boxes = lab.sandboxes()
    found = [box for box in boxes if pod in (box.pod, f"{box.namespace}/{box.pod}")]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{box.namespace}/{box.pod}" for box in boxes) or "none: begin with multus-py lab up FILE"
    problem = "is not in" if not found else "is in several namespaces of"
    raise CniError(Code.INVALID_ENVIRONMENT, f"pod {pod} {problem} lab {lab.name}", f"pods: {listed}")


def must_be_root() -> None:
    """Refuse early what the kernel would refuse late."""
    if os.geteuid() != 0:
        raise CniError(Code.INVALID_ENVIRONMENT, "network namespaces need root: run with sudo")
