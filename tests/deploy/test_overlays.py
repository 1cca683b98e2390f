# SPDX-License-Identifier: Apache-2.0
"""The manifests: an API server takes them, they fit together, and what they say of commands and paths is true."""

import json
import os
import subprocess
import sys

import pytest
import rendered
import yaml
from cluster import Cluster
from rendered import DEPLOY, KUSTOMIZATIONS

from multus_py.cli.commands import parser_of
from multus_py.config import daemon as daemon_config
from multus_py.config import validate

BASE = DEPLOY / "base"
every = pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
# What may differ between systems: where things are, and which conf is the default network's.
PLACES = {"binDir", "multusMasterCNI"}
CERTIFIED = DEPLOY / "overlays" / "per-node-certificate"


def config(folder):
    """Return the daemon's config file of a kustomization."""
    return json.loads(rendered.objects(folder)["ConfigMap"]["data"]["daemon-config.json"])


def host_paths(folder):
    """Return the node's path of each volume that has one."""
    volumes = rendered.pod(folder)["volumes"]
    return {volume["name"]: volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume}


@every
def test_an_api_server_takes_it(folder, apiserver: Cluster):
    """Each overlay passes the server's own validation, admission included, without being stored."""
    done = subprocess.run(
        ["kubectl", "--kubeconfig", str(apiserver.admin), "apply", "--dry-run=server", "-f", "-"],
        input=rendered.render(folder), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "daemonset.apps/multus-py" in done.stdout
    assert "customresourcedefinition.apiextensions.k8s.io/network-attachment-definitions" in done.stdout
    stored = apiserver.kubectl("-n", "kube-system", "get", "daemonsets", "--ignore-not-found", "-o", "name")
    assert "multus-py" not in stored


def test_the_file_for_one_apply_is_current():
    """multus-py.yaml holds the very objects of the base."""
    assert list(yaml.safe_load_all((DEPLOY / "multus-py.yaml").read_text())) == list(
        yaml.safe_load_all(rendered.render(BASE))
    )


@every
def test_the_config_is_sound(folder):
    """daemon-config.json has nothing that the schema objects to, and no key that the daemon does not know."""
    body = config(folder)
    assert validate.problems(body, "daemon") == []
    assert daemon_config.parse(body).unknown == ()


@every
def test_an_overlay_changes_places_alone(folder):
    """Everything but the places of the node's folders is the same on all systems, so that a change is made once."""
    base, here = config(BASE), config(folder)
    wanted = PLACES | ({"perNodeCertificate"} if folder == CERTIFIED else set())
    assert {key for key in base | here if base.get(key) != here.get(key)} <= wanted
    changed = {name for name, path in host_paths(BASE).items() if host_paths(folder)[name] != path}
    assert changed <= {"cni-bin", "cni-conf", "netns", "pod-resources", "device-plugins"}


@every
def test_the_folder_of_plugins_is_told_once(folder):
    """The shim goes where the daemon, and the runtime, look for plugins."""
    assert config(folder)["binDir"] == host_paths(folder)["cni-bin"]


@every
def test_what_the_daemon_opens_is_mounted(folder):
    """Each path of the config that the daemon itself opens is inside of a mount of the node."""
    (container,) = rendered.pod(folder)["containers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    found = daemon_config.parse(config(folder))
    opened = [found.install.folder, found.socket_dir, found.spool_dir, found.chroot_dir, found.overlay["confDir"]]
    opened += [found.certificate.folder] if found.certificate else []
    for path in map(str, opened):
        assert any(f"{path}/".startswith(f"{mount}/") for mount in mounts), path
    assert not {mount["name"] for mount in container["volumeMounts"]} - {
        volume["name"] for volume in rendered.pod(folder)["volumes"]
    }


def test_certificates_are_kept_on_the_node():
    """They outlive the pod: otherwise each start would wait for an approval."""
    certificate = daemon_config.parse(config(CERTIFIED)).certificate
    mounts = {each["mountPath"]: each["name"] for each in rendered.pod(CERTIFIED)["containers"][0]["volumeMounts"]}
    (name,) = [name for path, name in mounts.items() if certificate.folder.is_relative_to(path)]
    assert name in host_paths(CERTIFIED)


def test_with_certificates_the_account_may_only_ask_for_them():
    """Every right goes from the account to the group; the account may ask for certificates, and tell Events of it."""
    base, here = rendered.objects(BASE), rendered.objects(CERTIFIED)
    account, group = ("ServiceAccount", "multus-py"), ("Group", "system:multus")
    subjects = {
        name: {(each["kind"], each["name"]) for each in body["subjects"]}
        for name, body in here.items() if name.partition("/")[0].endswith("Binding") and "/" in name
    }  # fmt: skip
    assert subjects == {
        "ClusterRoleBinding/multus-py": {group},
        "RoleBinding/multus-py": {group},
        "ClusterRoleBinding/multus-py-certificate": {account, group},
        "RoleBinding/multus-py-certificate": {account},
    }
    for name in ("ClusterRole/multus-py", "Role/multus-py"):
        assert here[name]["rules"] == base[name]["rules"]
    (rule,) = here["ClusterRole/multus-py-certificate"]["rules"]
    assert (rule["resources"], sorted(rule["verbs"])) == (["certificatesigningrequests"], ["create", "get"])
    own = here["Role/multus-py-certificate"]
    assert {(*rule["resources"], *rule["verbs"]) for rule in own["rules"]} == {("pods", "get"), ("events", "create")}
    assert own["metadata"]["namespace"] == here["RoleBinding/multus-py-certificate"]["metadata"]["namespace"]
    assert own["metadata"]["namespace"] == here["DaemonSet"]["metadata"]["namespace"]


def test_new_namespaces_can_be_entered():
    """What the runtime mounts after the daemon's start must reach it, in both views of the node."""
    (container,) = rendered.pod(BASE)["containers"]
    spread = {mount["mountPath"]: mount.get("mountPropagation") for mount in container["volumeMounts"]}
    assert spread["/run/netns"] == spread["/hostroot"] == "HostToContainer"


def test_the_words_of_the_containers_are_understood():
    """The commands and options of the manifest exist."""
    pod = rendered.pod(BASE)
    for container in pod["initContainers"] + pod["containers"]:
        assert parser_of(container["args"][0]).parse_args(container["args"])


def test_the_init_container_places_the_shim(tmp_path):
    """Its very words put an executable where the volume of the runtime's plugins is mounted."""
    (container,) = rendered.pod(BASE)["initContainers"]
    words = [str(tmp_path) if word == "/host/cni/bin" else word for word in container["args"]]
    subprocess.run([sys.executable, "-m", "multus_py.cli.main", *words], check=True, capture_output=True)
    assert os.access(tmp_path / "multus-py", os.X_OK)


def test_there_is_time_to_drain():
    """kubelet kills the daemon only after calls under way may have ended and the conf may have been removed."""
    found = daemon_config.parse(config(BASE))
    assert rendered.pod(BASE)["terminationGracePeriodSeconds"] >= found.drain_timeout + 5 + 5


def test_the_memory_limit_has_room_for_executables():
    """The daemon's 130 MB and 20 MB for each executable that may run at once fit below the limit."""
    (container,) = rendered.pod(BASE)["containers"]
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert limit >= 130 + 20 * daemon_config.parse(config(BASE)).concurrent_executables


def test_every_node_gets_one_before_its_pods():
    """No taint keeps the daemon away, and nothing less important takes its place."""
    pod = rendered.pod(BASE)
    assert {each["effect"] for each in pod["tolerations"] if each["operator"] == "Exists" and "key" not in each} == {
        "NoSchedule",
        "NoExecute",
    }
    assert pod["priorityClassName"] == "system-node-critical"


def test_no_registry_is_named():
    """Whose image it is, the overlay of whoever deploys it says."""
    pod = rendered.pod(BASE)
    images = {container["image"] for container in pod["initContainers"] + pod["containers"]}
    assert all("/" not in image for image in images)
    assert len(images) == 1
