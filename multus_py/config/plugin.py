# SPDX-License-Identifier: Apache-2.0
"""Our own plugin config, every key of multus-cni's and a few more, as one frozen record."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.cni import versions
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields

TYPE = "multus-py"
# Types under which we, or the original, may stand in a config: whoever delegates to one of them delegates to itself.
OUR_TYPES = frozenset({TYPE, "multus", "multus-shim"})
BACKENDS = ("auto", "builtin", "exec")


@dataclass(frozen=True)
class LogOptions:
    """Rotation of the log file: days, megabytes, files."""

    max_age: int = 5
    max_size: int = 100
    max_backups: int = 5
    compress: bool = True


@dataclass(frozen=True)
class MultusConfig:
    """What the platform team configured. Paths are as written; times are in seconds.

    *allowed_plugins* and *allowed_folders* None: everything is. *root* is where the node's root is seen from here.
    """

    name: str
    version: str
    type: str = TYPE
    conf_dir: Path = Path("/etc/cni/multus/net.d")
    cni_dir: Path = Path("/var/lib/cni/multus")
    bin_dir: str = "/opt/cni/bin"
    cluster_network: str = ""
    default_networks: tuple[str, ...] = ()
    require_default_networks: bool = False
    delegates: tuple[Mapping[str, Any], ...] = ()
    kubeconfig: str = ""
    manifests: str = ""
    runtime_config: Mapping[str, Any] | None = None
    readiness_file: str = ""
    namespace_isolation: bool = False
    global_namespaces: frozenset[str] = frozenset({"default"})
    system_namespaces: frozenset[str] = frozenset({"kube-system"})
    multus_namespace: str = "kube-system"
    auxiliary_chain: str = ""
    log_file: str = ""
    log_level: str = "panic"
    log_to_stderr: bool = True
    log_options: LogOptions = LogOptions()
    allowed_plugins: frozenset[str] | None = None
    allowed_folders: tuple[str, ...] | None = None
    backend: str = "auto"
    node_name: str = ""
    pod_resources_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    device_info_dir: Path = Path("/var/run/k8s.cni.cncf.io/devinfo")
    api_deadline: float = 10.0
    exec_timeout: float = 120.0
    readiness_timeout: float = 45.0
    root: str = "/"

    def path(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return where executables are sought: our own folder first, then the runtime's CNI_PATH."""
        return (self.bin_dir, *(folder for folder in given if folder != self.bin_dir))


def parse(body: Mapping[str, Any], root: str = "/") -> MultusConfig:
    """Read the config; code 7 names the key that is wrong. Keys that only the original used are read and let be."""
    fields = Fields(body, "multus-py config")
    logs = Fields(fields.table("logOptions"), "multus-py config: logOptions")
    if fields.text("manifests") and fields.text("kubeconfig"):
        raise CniError(
            Code.INVALID_CONFIG, "multus-py config: 'manifests' and 'kubeconfig' exclude each other", "keep one"
        )
    if (backend := fields.text("delegateBackend", "auto")) not in BACKENDS:
        raise fields.error("delegateBackend", " or ".join(BACKENDS))
    return MultusConfig(
        name=fields.text("name"),
        version=versions.resolve(fields.get("cniVersion")),
        type=fields.text("type", TYPE),
        conf_dir=Path(fields.text("confDir") or MultusConfig.conf_dir),
        cni_dir=Path(fields.text("cniDir") or MultusConfig.cni_dir),
        bin_dir=fields.text("binDir") or MultusConfig.bin_dir,
        cluster_network=fields.text("clusterNetwork"),
        default_networks=fields.texts("defaultNetworks") or (),
        require_default_networks=fields.flag("requireDefaultNetworks"),
        delegates=fields.tables("delegates") or (),
        kubeconfig=fields.text("kubeconfig"),
        manifests=fields.text("manifests"),
        runtime_config=fields.table("runtimeConfig"),
        readiness_file=fields.text("readinessindicatorfile"),
        namespace_isolation=fields.flag("namespaceIsolation"),
        global_namespaces=_global_namespaces(fields),
        system_namespaces=frozenset(_or(fields.texts("systemNamespaces"), ("kube-system",))),
        multus_namespace=fields.text("multusNamespace") or MultusConfig.multus_namespace,
        auxiliary_chain=fields.text("auxiliaryCNIChainName"),
        log_file=fields.text("logFile"),
        log_level=fields.text("logLevel") or MultusConfig.log_level,
        log_to_stderr=fields.flag("logToStderr", default=True),
        log_options=LogOptions(
            logs.number("maxAge", 5),
            logs.number("maxSize", 100),
            logs.number("maxBackups", 5),
            logs.flag("compress", default=True),
        ),
        allowed_plugins=None if (plugins := fields.texts("allowedPlugins")) is None else frozenset(plugins),
        allowed_folders=_allowed_folders(fields),
        backend=backend,
        node_name=fields.text("nodeName"),
        pod_resources_socket=Path(fields.text("podResourcesSocket") or MultusConfig.pod_resources_socket),
        device_info_dir=Path(fields.text("deviceInfoDir") or MultusConfig.device_info_dir),
        api_deadline=fields.seconds("apiDeadline", MultusConfig.api_deadline),
        exec_timeout=fields.seconds("execTimeout", MultusConfig.exec_timeout),
        readiness_timeout=fields.seconds("readinessTimeout", MultusConfig.readiness_timeout),
        root=root,
    )


def _or(value: tuple[str, ...] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return default if value is None else value


def _allowed_folders(fields: Fields) -> tuple[str, ...] | None:
    folders = fields.texts("allowedFolders")
    if folders and not all(folder.startswith("/") for folder in folders):
        raise fields.error("allowedFolders", "a list of folders, each from the root on")
    return folders


def _global_namespaces(fields: Fields) -> frozenset[str]:
    """Read the comma list; a list of strings is taken too. Setting it replaces the default, as with multus-cni."""
    value = fields.get("globalNamespaces")
    if value is None or value == "":
        return MultusConfig.global_namespaces
    items = value.split(",") if isinstance(value, str) else fields.texts("globalNamespaces") or ()
    return frozenset(item.strip() for item in items if item.strip())


def delegates_to_us(conf: Mapping[str, Any], own_type: str = TYPE) -> bool:
    """Tell by content whether a network config (one plugin or a list) would call us again."""
    plugins = conf.get("plugins")
    members = plugins if isinstance(plugins, list) else [conf]
    ours = (*OUR_TYPES, own_type)  # no set: a type may be anything, here
    return any(isinstance(member, Mapping) and member.get("type") in ours for member in members)
