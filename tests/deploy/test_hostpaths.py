# SPDX-License-Identifier: Apache-2.0
"""Where runtimes look for confs and plugins is found in their own config, as each distribution writes it."""

from pathlib import Path

import pytest

from multus_py.agent.node.runtimes import Runtime, runtimes, within

V2 = """version = 2
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{bin}"
  conf_dir = "{conf}"
"""
V3 = """version = 3
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['{bin}', '/opt/cni/bin']
  conf_dir = '{conf}'
"""
K3S = "/var/lib/rancher/k3s"
SNAP = "/var/snap/microk8s"


def put(root: Path, path: str, text: str = "") -> None:
    """Write a file of the node."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def run(root: Path, *words: str, pid: int = 100) -> None:
    """Have a process run on the node."""
    put(root, f"/proc/{pid}/cmdline", "\0".join((*words, "")))


@pytest.mark.parametrize(
    ("path", "text", "conf_dir", "bin_dirs"),
    [
        ("/etc/containerd/config.toml", "version = 2\n", "/etc/cni/net.d", ("/opt/cni/bin",)),
        ("/etc/containerd/config.toml", V2.format(bin="/home/kubernetes/bin", conf="/etc/cni/net.d"), "/etc/cni/net.d",
         ("/home/kubernetes/bin",)),
        (f"{K3S}/agent/etc/containerd/config.toml",
         V2.format(bin=f"{K3S}/data/cni", conf=f"{K3S}/agent/etc/cni/net.d"), f"{K3S}/agent/etc/cni/net.d",
         (f"{K3S}/data/cni",)),
        (f"{K3S}/agent/etc/containerd/config.toml",
         V3.format(bin=f"{K3S}/data/cni", conf=f"{K3S}/agent/etc/cni/net.d"), f"{K3S}/agent/etc/cni/net.d",
         (f"{K3S}/data/cni", "/opt/cni/bin")),
        ("/var/lib/rancher/rke2/agent/etc/containerd/config.toml", "version = 2\n", "/etc/cni/net.d",
         ("/opt/cni/bin",)),
        (f"{SNAP}/current/args/containerd.toml",
         V2.format(bin=f"{SNAP}/current/opt/cni/bin", conf=f"{SNAP}/current/args/cni-network"),
         f"{SNAP}/current/args/cni-network", (f"{SNAP}/current/opt/cni/bin",)),
        ("/etc/cri/containerd.toml", "version = 3\n", "/etc/cni/net.d", ("/opt/cni/bin",)),
        ("/etc/containerd/config.toml", '[plugins.cri.cni]\nconf_dir = "/old"\n', "/old", ("/opt/cni/bin",)),
    ],
    ids=["kubeadm", "gke", "k3s v2", "k3s v3", "rke2", "microk8s", "talos", "version 1"],
)  # fmt: skip
def test_containerd_as_distributions_have_it(tmp_path, path, text, conf_dir, bin_dirs):
    """The folders are those of the file that the distribution keeps, defaults where it is silent."""
    put(tmp_path, path, text)
    (found,) = runtimes(tmp_path)
    assert (found.name, found.config, found.running) == ("containerd", path, False)
    assert (found.conf_dir, found.bin_dirs) == (conf_dir, bin_dirs)


def test_the_running_process_tells_which_file(tmp_path):
    """Of several configs that of the containerd that runs counts, wherever it is."""
    put(tmp_path, "/etc/containerd/config.toml", "version = 2\n")
    put(tmp_path, "/run/mine.toml", V2.format(bin="/my/bin", conf="/my/conf"))
    run(tmp_path, "/usr/bin/containerd", "--log-level", "info", "--config", "/run/mine.toml")
    assert runtimes(tmp_path) == [Runtime("containerd", "/run/mine.toml", "/my/conf", ("/my/bin",), running=True)]


def test_a_containerd_without_cri_serves_no_pods(tmp_path):
    """Docker's own containerd has the CRI plugin switched off and is passed over."""
    put(tmp_path, "/run/docker.toml", 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    run(tmp_path, "containerd", "--config=/run/docker.toml", pid=7)
    run(tmp_path, "crio", pid=8)
    assert [found.name for found in runtimes(tmp_path)] == ["cri-o"]


def test_containerd_without_a_config_has_its_defaults(tmp_path):
    """No file at the usual place is fine for containerd, and for us."""
    run(tmp_path, "containerd")
    assert runtimes(tmp_path) == [Runtime("containerd", "/etc/containerd/config.toml", running=True)]


def test_imports_are_read_in_order(tmp_path):
    """Globs and relative names are followed, each file once; in version 3 keys join, and the later file wins."""
    put(tmp_path, "/etc/containerd/config.toml",
        'version = 3\nimports = ["conf.d/*.toml", "config.toml"]\n'
        "[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/a'\nbin_dir = '/kept'\n")  # fmt: skip
    section = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '{}'\n"
    put(tmp_path, "/etc/containerd/conf.d/20-b.toml", section.format("/c"))
    put(tmp_path, "/etc/containerd/conf.d/10-a.toml", section.format("/b"))
    (found,) = runtimes(tmp_path)
    assert (found.conf_dir, found.bin_dirs) == ("/c", ("/kept",))


def test_an_import_replaces_a_section_of_version_2(tmp_path):
    """Before version 3 an imported section takes the whole place: what it leaves out is the default again."""
    put(tmp_path, "/etc/containerd/config.toml", 'imports = ["/etc/more.toml"]\n' + V2.format(bin="/lost", conf="/a"))
    put(tmp_path, "/etc/more.toml", 'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\nconf_dir = "/b"\n')
    (found,) = runtimes(tmp_path)
    assert (found.conf_dir, found.bin_dirs) == ("/b", ("/opt/cni/bin",))


def test_what_would_bypass_us_is_told(tmp_path):
    """A conf template and more than one conf for each pod are worth knowing of."""
    put(tmp_path, "/etc/containerd/config.toml",
        V2.format(bin="/b", conf="/c") + '  max_conf_num = 2\n  conf_template = "/etc/t"\n')  # fmt: skip
    (found,) = runtimes(tmp_path)
    assert (found.conf_limit, found.template) == (2, "/etc/t")


@pytest.mark.parametrize("text", ["version = [", "\udcff".encode(errors="surrogateescape").decode("latin-1") + "= 1"])
def test_a_broken_config_is_told_and_defaults_hold(tmp_path, text):
    """What cannot be parsed does not hide the runtime."""
    put(tmp_path, "/etc/containerd/config.toml", text)
    (found,) = runtimes(tmp_path)
    assert "/etc/containerd/config.toml" in found.trouble
    assert (found.conf_dir, found.bin_dirs) == ("/etc/cni/net.d", ("/opt/cni/bin",))


def test_cri_o_on_openshift(tmp_path):
    """Drop-ins are read by name after the file, each key on its own."""
    put(tmp_path, "/etc/crio/crio.conf", '[crio.network]\nnetwork_dir = "/first"\n')
    put(tmp_path, "/etc/crio/crio.conf.d/00-default",
        '[crio.network]\nnetwork_dir = "/etc/kubernetes/cni/net.d/"\n'
        'plugin_dirs = ["/var/lib/cni/bin", "/usr/libexec/cni"]\n')  # fmt: skip
    put(tmp_path, "/etc/crio/crio.conf.d/99-more", '[crio.network]\ncni_default_network = "ovn"\n')
    run(tmp_path, "/usr/bin/crio")
    (found,) = runtimes(tmp_path)
    assert (found.conf_dir, found.network) == ("/etc/kubernetes/cni/net.d/", "ovn")
    assert found.bin_dirs == ("/var/lib/cni/bin", "/usr/libexec/cni")


def test_cri_o_s_options_win(tmp_path):
    """What the command line says is above all files."""
    put(tmp_path, "/my/crio.conf", '[crio.network]\nnetwork_dir = "/file"\nplugin_dir = "/legacy"\n')
    run(tmp_path, "crio", "-c", "/my/crio.conf", "--cni-config-dir=/option")
    (found,) = runtimes(tmp_path)
    assert (found.conf_dir, found.bin_dirs) == ("/option", ("/legacy",))


def test_nothing_is_found_where_nothing_is(tmp_path):
    """An empty root has no runtime."""
    assert runtimes(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/current/bin", "data/1/bin"),
        ("/relative/bin", "data/1/bin"),
        ("/../../etc", "etc"),
        ("/loop/x", None),
        ("/plain/a", "plain/a"),
    ],
)
def test_links_stay_below_the_root(tmp_path, path, seen):
    """A link of the node leads to the node's file, never to one of ours; a loop ends."""
    (tmp_path / "data" / "1").mkdir(parents=True)
    (tmp_path / "current").symlink_to("/data/1")
    (tmp_path / "relative").symlink_to("data/../data/1")
    (tmp_path / "loop").symlink_to("loop")
    found = within(tmp_path, path)
    assert found == tmp_path / seen if seen else tmp_path in found.parents
