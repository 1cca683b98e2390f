# SPDX-License-Identifier: Apache-2.0
"""`multus-py lab` for real: namespaces, links, the launcher as an executable, and nothing left afterwards."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from multus_py.cli.main import main
from multus_py.cli.table import columns

EXAMPLES = Path(__file__).parents[2] / "examples"
LEASES = Path("/var/lib/cni/networks")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class LabUnderTest:
    """A lab with a name of its own: the command line, and what the machine shows of it."""

    def __init__(self) -> None:
        self.name = f"mpt{token_hex(4)}"
        self.root = Path("/run/multus-py/lab") / self.name

    def run(self, subcommand: str, *words: object) -> int:
        """Run one subcommand of `multus-py lab`."""
        return main(["lab", subcommand, "--name", self.name, *map(str, words)])

    def namespaces(self) -> list[str]:
        """List the lab's network namespaces, without its name."""
        return sorted(path.name.removeprefix(f"{self.name}.") for path in Path("/run/netns").glob(f"{self.name}.*"))

    def on_host(self, *command: str) -> str:
        """Run *command* in the lab's host namespace."""
        place = f"--net=/run/netns/{self.name}.host"
        return subprocess.run(["nsenter", place, *command], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def lab() -> Iterator[LabUnderTest]:
    """A lab that is taken down at the end, whatever happened; nothing of it may stay."""
    lab = LabUnderTest()
    yield lab
    lab.run("down")
    assert lab.namespaces() == []
    assert not lab.root.exists()


def _definition(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"config": json.dumps({"cniVersion": "1.0.0", **config})},
    }


def _pod(name: str, networks: str = "") -> dict[str, Any]:
    annotations = {"k8s.v1.cni.cncf.io/networks": networks} if networks else {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations}}


def _manifest(path: Path, *objects: dict[str, Any]) -> Path:
    path.write_text("\n---\n".join(json.dumps(body) for body in objects))
    return path


def _shown(lab: LabUnderTest, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert lab.run("show", "--json") == 0
    return json.loads(capsys.readouterr().out)


def _machine_links() -> str:
    listed = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    return "\n".join(sorted(line.split()[0] for line in listed.splitlines()))


@needs_root
@pytest.mark.parametrize("backend", ["auto", "exec"])
def test_the_examples_meet_on_every_network(
    lab: LabUnderTest, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    """Both pods have four interfaces, and each address of the one answers the other."""
    if backend == "exec" and not Path("/usr/lib/cni/bridge").exists():
        pytest.skip("the executables of containernetworking-plugins are not installed")
    assert lab.run("up", EXAMPLES, "--backend", backend) == 0
    pods = {pod["pod"]: pod for pod in _shown(lab, capsys)}
    for name in ("caller", "callee"):
        interfaces = {item["ifname"]: item["network"] for item in pods[name]["interfaces"]}
        assert interfaces == {
            "eth0": "pod-network",
            "net1": "default/signalling",
            "media0": "default/media",
            "mgmt0": "default/management",
        }
    for interface in pods["callee"]["interfaces"]:
        for address in interface["ips"]:
            target = address.split("/")[0]
            ping = ["ping", "-c", "1", "-W", "3", "-I", interface["ifname"], target]
            assert lab.run("exec", "caller", "--", *ping) == 0, f"no answer from {target}"


@needs_root
@pytest.mark.skipif(not Path("/usr/lib/cni/tuning").exists(), reason="containernetworking-plugins is not installed")
def test_the_demo_leaves_nothing_behind(lab: LabUnderTest) -> None:
    """`make demo` shows every network answering, and compares the machine before and after by itself."""
    launcher = Path(sys.executable).with_name("multus-py")
    done = subprocess.run(
        [EXAMPLES / "demo.sh"],
        env={**os.environ, "DEMO_LAB": lab.name, "MULTUS_PY": str(launcher)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 received") == 5
    assert done.stdout.endswith("namespaces, links, nft tables and IPAM files are as they were\n")


@needs_root
def test_show_json_tells_what_was_asked_for(lab: LabUnderTest, capsys: pytest.CaptureFixture[str]) -> None:
    """Address, MAC and interface name are those of the annotation, and the default route is where it was asked for."""
    assert lab.run("up", EXAMPLES) == 0
    callee = next(pod for pod in _shown(lab, capsys) if pod["pod"] == "callee")
    assert callee.keys() == {"namespace", "pod", "netns", "interfaces"}
    assert (callee["namespace"], callee["netns"]) == ("default", f"/run/netns/{lab.name}.default.callee")
    media = next(item for item in callee["interfaces"] if item["ifname"] == "media0")
    assert media == {
        "ifname": "media0",
        "network": "default/media",
        "ips": ["10.30.0.11/24"],
        "mac": "02:00:00:00:30:0b",
        "mtu": 1500,
        "default": False,
    }
    assert [item["ifname"] for item in callee["interfaces"] if item["default"]] == ["net1"]


@needs_root
def test_show_prints_an_aligned_table_and_the_status(lab: LabUnderTest, capsys: pytest.CaptureFixture[str]) -> None:
    """A person reads columns; the network-status is shown as it was published."""
    assert lab.run("up", EXAMPLES) == 0
    capsys.readouterr()
    assert lab.run("show") == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    column = heading.index("NETWORK")
    networks = {"pod-network", "default/signalling", "default/media", "default/management"}
    assert {line[column:].split()[0] for line in lines} == networks
    assert lab.run("show", "--status", "callee") == 0
    statuses = json.loads(capsys.readouterr().out)
    assert [status["interface"] for status in statuses] == ["eth0", "net1", "media0", "mgmt0"]


@needs_root
def test_a_lab_touches_nothing_of_the_machine(lab: LabUnderTest, tmp_path: Path) -> None:
    """Bridges and macvlan parents live in the lab's host namespace, and leases in the lab's own folder."""
    network = f"mpt-{token_hex(4)}"
    parent = f"mpt{token_hex(4)}"
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]]}
    config = {"type": "macvlan", "name": network, "master": parent, "ipam": ipam}
    links = _machine_links()
    assert lab.run("up", _manifest(tmp_path / "m.yaml", _definition("net", config), _pod("web", "net"))) == 0
    assert parent in lab.on_host("ip", "-br", "link", "show", "up")
    assert parent not in _machine_links()
    assert _machine_links() == links
    assert not (LEASES / network).exists()
    assert not (LEASES / "pod-network").exists()


@needs_root
def test_up_again_attaches_the_new_pods_only(
    lab: LabUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lab can be extended: existing pods keep their namespace and their address."""
    first = _manifest(tmp_path / "first.yaml", _pod("first"))
    assert lab.run("up", first) == 0
    before = _shown(lab, capsys)
    assert lab.run("up", first, _manifest(tmp_path / "second.yaml", _pod("second"))) == 0
    assert "1 of 1 new pods attached, 1 were there before" in capsys.readouterr().err
    after = _shown(lab, capsys)
    assert [pod["pod"] for pod in after] == ["first", "second"]
    assert after[0] == before[0]


@needs_root
def test_a_pod_that_fails_is_cleaned_and_the_others_stay(
    lab: LabUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names pod and cause; after correcting the manifest `up` attaches the pod."""
    broken = _manifest(tmp_path / "broken.yaml", _pod("broken", "no-such-net"))
    assert lab.run("up", broken, _manifest(tmp_path / "sound.yaml", _pod("sound"))) == 1
    errors = capsys.readouterr().err
    assert "pod default/broken: FAILED" in errors
    assert "no-such-net" in errors
    assert lab.namespaces() == ["default.sound", "host"]
    _manifest(broken, _pod("broken"))
    assert lab.run("up", broken) == 0
    assert lab.namespaces() == ["default.broken", "default.sound", "host"]


@needs_root
def test_manifests_that_cannot_be_read_make_no_lab(
    lab: LabUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mistakes are reported before the first namespace is created."""
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: [unclosed")
    assert lab.run("up", broken) == 1
    assert "broken" in capsys.readouterr().err
    assert lab.namespaces() == []
    assert not lab.root.exists()


@needs_root
def test_another_primary_takes_the_place_of_the_built_in_one(
    lab: LabUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--primary names any conf; the status has the name of its network."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.98.0.0/24"}]]}
    conf = tmp_path / "mine.conf"
    conf.write_text(json.dumps({"cniVersion": "0.4.0", "name": "mine", "type": "bridge", "bridge": "b", "ipam": ipam}))
    assert lab.run("up", _manifest(tmp_path / "pod.yaml", _pod("web")), "--primary", conf) == 0
    (pod,) = _shown(lab, capsys)
    assert [(item["network"], item["ips"]) for item in pod["interfaces"]] == [("mine", ["10.98.0.2/24"])]


@needs_root
def test_exec_returns_the_command_s_status(
    lab: LabUnderTest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit status is that of the command; for an unknown pod the error lists the existing ones."""
    assert lab.run("up", _manifest(tmp_path / "pod.yaml", _pod("web"))) == 0
    assert lab.run("exec", "default/web", "--", "sh", "-c", "exit 7") == 7
    capfd.readouterr()
    assert lab.run("exec", "web", "--", "ip", "-br", "link", "show", "dev", "eth0") == 0
    assert capfd.readouterr().out.startswith("eth0")
    assert lab.run("exec", "nobody", "--", "true") == 1
    assert "pods: default/web" in capfd.readouterr().err


@needs_root
def test_down_finishes_when_a_pod_cannot_be_detached(
    lab: LabUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is printed and sets the exit status; namespaces and folders are removed all the same."""
    assert lab.run("up", _manifest(tmp_path / "pod.yaml", _pod("web"))) == 0
    launcher = lab.root / "bin" / "multus-py"
    launcher.write_text("#!/bin/sh\necho broken on purpose >&2\nexit 3\n")
    capsys.readouterr()
    assert lab.run("down") == 1
    assert "broken on purpose" in capsys.readouterr().err
    assert lab.namespaces() == []
    assert not lab.root.exists()
    assert lab.run("down") == 0


@needs_root
def test_up_begins_anew_with_a_pod_that_was_cut_off(
    lab: LabUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod whose ADD was interrupted is detached first: its address is released, its name can be used."""
    manifest = _manifest(tmp_path / "pod.yaml", _pod("web"))
    assert lab.run("up", manifest) == 0
    record = lab.root / "pods" / "default.web.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "result": None}))
    assert lab.run("up", manifest) == 0
    (pod,) = _shown(lab, capsys)
    assert [item["ifname"] for item in pod["interfaces"]] == ["eth0"]
    leases = [path.name for path in (lab.root / "var-lib-cni" / "networks").rglob("10.*")]
    assert [f"{name}/24" for name in leases] == pod["interfaces"][0]["ips"]


@needs_root
def test_show_goes_on_when_a_pod_s_namespace_is_gone(
    lab: LabUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod without a namespace does not hide the others."""
    assert lab.run("up", _manifest(tmp_path / "pods.yaml", _pod("gone"), _pod("here"))) == 0
    subprocess.run(["ip", "netns", "del", f"{lab.name}.default.gone"], check=True)
    assert [(pod["pod"], len(pod["interfaces"])) for pod in _shown(lab, capsys)] == [("gone", 0), ("here", 1)]
    assert lab.run("show") == 0
    assert "default/gone  (none)" in capsys.readouterr().out


@needs_root
def test_down_removes_a_half_made_lab(lab: LabUnderTest) -> None:
    """An incomplete lab, with an incomplete record and a namespace without a record, is removed, too."""
    (lab.root / "pods").mkdir(parents=True)
    (lab.root / "pods" / "default.cut.json").write_text('{"namespace": "default"')
    subprocess.run(["ip", "netns", "add", f"{lab.name}.default.cut"], check=True)
    subprocess.run(["ip", "netns", "add", f"{lab.name}.host"], check=True)
    lab.run("down")
    assert lab.namespaces() == []
    assert not lab.root.exists()


@needs_root
def test_without_a_lab_show_says_how_to_begin(lab: LabUnderTest, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a lab the error names the command that creates one."""
    assert lab.run("show") == 1
    assert "begin with: multus-py lab up FILE" in capsys.readouterr().err


def test_without_root_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Without root the error is one line that names sudo."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        assert main(["lab", "show"]) == 1
    finally:
        os.seteuid(was)
    assert capsys.readouterr().err == "multus-py: network namespaces need root: run with sudo\n"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """Each column begins at the same place in every line, and no line ends in blanks."""
    assert columns([("A", "B", "C"), ("long", "", "x"), ("", "yy", "")]) == "A     B   C\nlong      x\n      yy"
