# SPDX-License-Identifier: Apache-2.0
"""The plugin config: the keys of multus-cni's and our own, as one frozen dataclass."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multus_py.cni import versions
from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.config import keys
from multus_py.config.keys import DAEMON, INSTALL, PLUGIN, RUNTIME, SHIM, Key, Kind, key

TYPE = "multus-py"
# Plugin types of multus-py and multus-cni: a config that delegates to one of them would call us again.
OUR_TYPES = frozenset({TYPE, "multus", "multus-shim"})
BACKENDS = ("auto", "builtin", "exec")


# fmt: off
@dataclass(frozen=True)
class LogOptions:
    """Rotation of the log file."""

    max_age: int = key("maxAge", keys.NUMBER, "Maximum age of rotated files.", PLUGIN, DAEMON, unit="days", default=5)
    max_size: int = key("maxSize", keys.NUMBER, "Maximum size of a file.", PLUGIN, DAEMON, unit="MB", default=100)
    max_backups: int = key("maxBackups", keys.NUMBER, "Maximum number of rotated files.", PLUGIN, DAEMON, default=5)
    compress: bool = key("compress", keys.FLAG, "Compress rotated files with gzip.", PLUGIN, DAEMON, default=True)


# fmt: on


def _read_folders(body: Fields, name: str) -> tuple[str, ...]:
    folders = body.texts(name) or ()
    if not all(folder.startswith("/") for folder in folders):
        raise body.error(name, "a list of folders, each from the root on")
    return folders


def _read_namespaces(body: Fields, name: str) -> frozenset[str] | None:
    """Read a list with commas or a list of strings. It replaces the default, as with multus-cni."""
    value = body.get(name)
    if value == "":
        return None
    items = value.split(",") if isinstance(value, str) else body.texts(name) or ()
    return frozenset(item.strip() for item in items if item.strip())


_LEVEL = Kind("string", {"enum": ["debug", "verbose", "info", "warning", "error", "panic"]}, keys.TEXT.read)
_FOLDERS = Kind("list of strings", {"type": "array", "items": {"type": "string", "pattern": "^/"}}, _read_folders)
_NAMESPACES = Kind(
    "string or list of strings", {"type": ["string", "array"], "items": {"type": "string"}}, _read_namespaces
)


# fmt: off
@dataclass(frozen=True)
class MultusConfig:
    """The plugin config. Paths are as written, durations are in seconds.

    *allowed_plugins* and *allowed_folders* None: no restriction. *root* is the node's root folder as this process sees
    it.
    """

    name: str = key("name", keys.TEXT, "Name of the network.", PLUGIN, INSTALL, of_protocol=True)
    version: str = key(
        "cniVersion", keys.CNI_VERSION, "Version of the CNI specification.", PLUGIN, INSTALL, SHIM, of_protocol=True,
        default_text=f"`{versions.DEFAULT}`"
    )
    type: str = key(
        "type", keys.TEXT, f"{TYPE}, or the name that the plugin is installed under.", PLUGIN, INSTALL, RUNTIME,
        default=TYPE, default_text="required in the plugin config", of_protocol=True
    )
    conf_dir: Path = key(
        "confDir", keys.PATH, "Folder of the CNI configs for definitions that have no config of their own.", PLUGIN,
        default=Path("/etc/cni/multus/net.d")
    )
    cni_dir: Path = key(
        "cniDir", keys.PATH, "Folder of the journal and of cached results.", PLUGIN, DAEMON, SHIM,
        default=Path("/var/lib/cni/multus")
    )
    bin_dir: str = key(
        "binDir", keys.PATH_TEXT, "Folder of plugin executables, searched before those of CNI_PATH.", PLUGIN,
        default="/opt/cni/bin"
    )
    cluster_network: str = key(
        "clusterNetwork", keys.TEXT,
        "The default network: name of a definition or of a network in confDir, or path of a "
        "CNI config file or of a folder of them.", PLUGIN, INSTALL, default=""
    )
    default_networks: tuple[str, ...] = key(
        "defaultNetworks", keys.TEXTS, "Further networks of every pod, each named as in clusterNetwork.", PLUGIN,
        default=()
    )
    require_default_networks: bool = key(
        "requireDefaultNetworks", keys.FLAG,
        "Refuse pods that decline defaultNetworks (annotation multus-py/default-networks).", PLUGIN, default=False
    )
    delegates: tuple[Mapping[str, Any], ...] = key(
        "delegates", keys.OBJECTS,
        "CNI configs of networks of every pod, the first is the default network; not read when clusterNetwork is set.",
        PLUGIN, INSTALL, default=()
    )
    kubeconfig: str = key(
        "kubeconfig", keys.PATH_TEXT, "Kubeconfig of the API server for pods and definitions; excludes manifests.",
        PLUGIN, DAEMON, default=""
    )
    manifests: str = key(
        "manifests", keys.PATH_TEXT, "Folder of manifests for pods and definitions, instead of an API server.",
        PLUGIN, DAEMON, default=""
    )
    runtime_config: Mapping[str, Any] | None = key(
        "runtimeConfig", keys.OBJECT, "Values of capabilities, set by the runtime.", PLUGIN, of_protocol=True,
        default=None
    )
    readiness_file: str = key(
        "readinessindicatorfile", keys.PATH_TEXT, "Wait until this file exists before a pod is attached.", PLUGIN,
        default=""
    )
    namespace_isolation: bool = key(
        "namespaceIsolation", keys.FLAG, "Pods use definitions of their own namespace only.", PLUGIN, default=False
    )
    global_namespaces: frozenset[str] = key(
        "globalNamespaces", _NAMESPACES,
        "Namespaces whose definitions all pods use in spite of namespaceIsolation, separated by commas.", PLUGIN,
        default=frozenset({"default"})
    )
    system_namespaces: frozenset[str] = key(
        "systemNamespaces", keys.TEXT_SET, "Namespaces whose pods get no defaultNetworks.", PLUGIN,
        default=frozenset({"kube-system"})
    )
    multus_namespace: str = key(
        "multusNamespace", keys.TEXT, "Namespace of the definitions that clusterNetwork and defaultNetworks name.",
        PLUGIN, default="kube-system"
    )
    auxiliary_chain: str = key(
        "auxiliaryCNIChainName", keys.TEXT, "Name of a chain of plugins that is added to every pod, last.", PLUGIN,
        default=""
    )
    log_file: str = key("logFile", keys.PATH_TEXT, "File that log lines are written to.", PLUGIN, DAEMON, default="")
    log_level: str = key(
        "logLevel", _LEVEL, "Least severity that is logged.", PLUGIN, DAEMON, default="panic",
        default_text="`panic`; in the daemon `info`"
    )
    log_to_stderr: bool = key("logToStderr", keys.FLAG, "Log to standard error, too.", PLUGIN, DAEMON, default=True)
    log_options: LogOptions = key(
        "logOptions", keys.record(LogOptions), "Rotation of the log file.", PLUGIN, DAEMON, default=LogOptions()
    )
    allowed_plugins: frozenset[str] | None = key(
        "allowedPlugins", keys.TEXT_SET,
        "Plugin types, those of IPAM included, that definitions outside globalNamespaces may use; absent: all.",
        PLUGIN, format="plugin-type", default=None
    )
    allowed_folders: tuple[str, ...] | None = key(
        "allowedFolders", _FOLDERS,
        "Absolute paths of the folders that paths in definitions outside globalNamespaces "
        "(dataDir, kernelpath, any other) must lie in; absent: any.", PLUGIN, default=None
    )
    backend: str = key(
        "delegateBackend", keys.choice(*BACKENDS),
        "What runs a plugin: builtin the native delegate, exec the executable, "
        "auto the native delegate if it supports all keys of the config, else the executable.", PLUGIN,
        default="auto"
    )
    node_name: str = key(
        "nodeName", keys.TEXT, "Name of this node.", PLUGIN, DAEMON, default="",
        default_text="MULTUS_NODE_NAME, or the host name"
    )
    pod_resources_socket: Path = key(
        "podResourcesSocket", keys.PATH,
        "Socket of kubelet's PodResources API, which lists the devices of pods; its checkpoint is in a folder next to "
        "it.", PLUGIN, default=Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    )
    device_info_dir: Path = key(
        "deviceInfoDir", keys.PATH, "Folder of the device information files, with dp/ and cni/ in it.", PLUGIN,
        default=Path("/var/run/k8s.cni.cncf.io/devinfo")
    )
    api_deadline: float = key(
        "apiDeadline", keys.SECONDS, "Limit of one request to the API server, retries included.", PLUGIN, DAEMON,
        default=10.0
    )
    exec_timeout: float = key("execTimeout", keys.SECONDS, "Limit of one run of an executable.", PLUGIN, default=120.0)
    readiness_timeout: float = key(
        "readinessTimeout", keys.SECONDS,
        "Limit of the wait for readinessindicatorfile, and of the shim's wait for the daemon.", PLUGIN, SHIM,
        default=45.0, default_text="45; in the shim 60"
    )
    root: str = "/"
    # fmt: on

    def path(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the folders in which executables are searched: *bin_dir*, then the runtime's CNI_PATH."""
        return (self.bin_dir, *(folder for folder in given if folder != self.bin_dir))


_UNUSED = "Accepted, without effect."
_SWITCH = Kind("boolean or string", {"type": ["boolean", "string"]}, Fields.get)
# All keys of the plugin config: those of `MultusConfig`, and those that we accept and do not read here.
# fmt: off
KEYS = (
    *keys.declared(MultusConfig),
    Key(
        "capabilities",
        Kind("object of booleans", {"type": "object", "additionalProperties": {"type": "boolean"}}, Fields.table),
        "What the runtime passes in runtimeConfig.", (RUNTIME, INSTALL), of_protocol=True
    ),
    Key("cniVersions", keys.TEXTS, "Versions among which the runtime chooses.", (RUNTIME,), of_protocol=True),
    Key("disableCheck", _SWITCH, "The runtime does not run CHECK.", (RUNTIME,), of_protocol=True),
    Key("disableGC", _SWITCH, "The runtime does not run GC.", (RUNTIME,), of_protocol=True),
    Key("prevResult", keys.OBJECT, _UNUSED, of_protocol=True),
    Key("ipam", keys.OBJECT, _UNUSED, of_protocol=True),
    Key("dns", keys.OBJECT, _UNUSED, of_protocol=True),
    Key("args", keys.OBJECT, _UNUSED, of_protocol=True),
    Key("retryDeleteOnError", keys.FLAG, "Accepted, without effect: DEL keeps a record of what it could not release."),
)
# fmt: on


def parse(body: Mapping[str, Any], root: str = "/") -> MultusConfig:
    """Read the config; an error (code 7) names the key. Keys that are not declared are ignored."""
    fields = Fields(body, "multus-py config")
    if fields.text("manifests") and fields.text("kubeconfig"):
        raise CniError(
            Code.INVALID_CONFIG, "multus-py config: 'manifests' and 'kubeconfig' exclude each other", "keep one"
        )
    return MultusConfig(**{"name": "", "version": versions.DEFAULT, **keys.read(MultusConfig, fields), "root": root})


def delegates_to_us(conf: Mapping[str, Any], own_type: str = TYPE) -> bool:
    """Return whether a network config (one plugin or a list) would call us again."""
    plugins = conf.get("plugins")
    members = plugins if isinstance(plugins, list) else [conf]
    ours = (*OUR_TYPES, own_type)  # no set: a type may be unhashable here
    return any(isinstance(member, Mapping) and member.get("type") in ours for member in members)
