# SPDX-License-Identifier: Apache-2.0
"""The daemon's config file: the keys of the plugin config, of multus-cni's daemon-config.json, and the daemon's own."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.config import keys
from multus_py.config import plugin as plugin_config
from multus_py.config.keys import DAEMON, INSTALL, SHIM, Key, Kind, key

log = logging.getLogger("multus_py")

# A duration as Go writes it: time.ParseDuration.
_GO_TIME = re.compile(r"\+?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+", re.ASCII)
_GO_PART = re.compile(r"([\d.]+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# What an API server takes as expirationSeconds (certificates.k8s.io/v1).
_SHORTEST, _LONGEST = 600, 2**31 - 1
REMOVE_ON_EXIT = ("never", "deleted", "always")
_CERTIFICATE_SECONDS = 600


def _read_go_duration(body: Fields, name: str) -> int:
    """Read the lifetime of a certificate in seconds, written as in Go: 24h, 1h30m."""
    text = body.text(name) or f"{_CERTIFICATE_SECONDS}s"
    parts = _GO_PART.findall(text) if _GO_TIME.fullmatch(text) else []
    seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in parts)
    if not _SHORTEST <= seconds <= _LONGEST:
        raise body.error(name, "a time such as 24h, 10m at least and 68 years at most")
    return int(seconds)


_GO_DURATION = Kind(
    "Go duration",
    {"type": "string", "pattern": "^\\+?(([0-9]+\\.?[0-9]*|\\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$"},
    _read_go_duration,
)


# fmt: off
@dataclass(frozen=True)
class NodeCertificate:
    """A client certificate of the node's own, stored in *folder*, with a lifetime of *seconds*.

    The first one is requested with the kubeconfig *bootstrap*; "": with the account used without this certificate.
    """

    folder: Path = key(
        "certDir", keys.PATH, "Folder of the certificate and its key; it must outlive the daemon.", DAEMON,
        default_text="`certs` in cniDir"
    )
    bootstrap: str = key(
        "bootstrapKubeconfig", keys.PATH_TEXT, "Kubeconfig of the account that requests the first certificate.", DAEMON,
        default="", default_text="that of kubeconfig, else the account of the daemon's pod"
    )
    seconds: int = key(
        "certDuration", _GO_DURATION,
        "Lifetime of a certificate, 10m at least. It is renewed after two thirds.", DAEMON,
        default=_CERTIFICATE_SECONDS, default_text="`10m`"
    )
    # fmt: on

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig that we write: with the certificate, or with the first account until there is one."""
        return self.folder / "multus-client.kubeconfig"


# fmt: off
@dataclass(frozen=True)
class CniConfFile:
    """The CNI config file that the daemon keeps in the runtime's folder, as the keys of multus-cni's generator say.

    *default_network* is what the daemon config names: a path (a folder's ends with "/" or is one), a network or "".
    *wraps_primary* False: no file is wrapped, since the daemon config itself has the default network. *network* is the
    name of the network in the file, "": that of the plugin. *version* pins cniVersion, "": not. *shim_keys* are copied
    into it.
    """

    folder: Path = key(
        "cniConfigDir", keys.PATH, "Folder of the runtime's CNI configs.", INSTALL, default=Path("/etc/cni/net.d")
    )
    look_in: Path | None = key(
        "multusAutoconfigDir", keys.PATH, "Folder of the default network's CNI config.", DAEMON, INSTALL, default=None,
        default_text="cniConfigDir"
    )
    takes_primary_name: bool = key(
        "overrideNetworkName", keys.FLAG, "Name the network as the default network's CNI config does.", INSTALL,
        default=False
    )
    bin_dir: Path = Path("/opt/cni/bin")
    type: str = plugin_config.TYPE
    default_network: str = ""
    wraps_primary: bool = True
    network: str = ""
    version: str = ""
    capabilities: tuple[str, ...] = ()
    shim_keys: Mapping[str, Any] = field(default_factory=dict)


_ENABLED = Key("enabled", keys.FLAG, "Use a client certificate.", (DAEMON,), default=False)


@dataclass(frozen=True)
class DaemonConfig:
    """The daemon config. Durations are in seconds; *overlay* replaces keys of every request.

    *install* is the CNI config file to write, None when the daemon writes none. With *cni_bin_dir* the shim is kept in
    that folder, too. *remove_on_exit* is one of `REMOVE_ON_EXIT`. *unknown* are keys that are not declared.
    """

    overlay: Mapping[str, Any] = field(default_factory=dict)
    socket_dir: Path = key(
        "socketDir", keys.PATH, "Folder of the socket, as the daemon sees it.", DAEMON, SHIM, INSTALL,
        default=Path("/run/multus"), alias=Key(
            "daemonSocketDir", keys.PATH, "Folder of the socket, as the shim sees it.", (DAEMON, SHIM, INSTALL),
            default_text="socketDir")
    )
    spool_dir: Path = key(
        "spoolDir", keys.PATH, "Folder of the DELs that the shim could not deliver; one for daemon and shim.", DAEMON,
        SHIM, default=Path("/var/lib/cni/multus/spool"), default_text="`spool` in cniDir"
    )
    chroot_dir: str = key(
        "chrootDir", keys.PATH_TEXT, "Root folder of the node, as the daemon sees it; executables run in it.", DAEMON,
        default=""
    )
    connection_limit: int = key(
        "connectionLimit", keys.COUNT, "Connections that are served at the same time.", DAEMON, default=1024
    )
    concurrent_adds: int = key(
        "concurrentAdds", keys.COUNT, "ADDs, CHECKs and GCs that run at the same time.", DAEMON, default=16
    )
    concurrent_deletes: int = key(
        "concurrentDeletes", keys.COUNT, "DELs that run at the same time.", DAEMON, default=16
    )
    concurrent_executables: int = key(
        "concurrentExecutables", keys.COUNT, "Executables that run at the same time.", DAEMON, default=32
    )
    attach_processes: int = key(
        "attachProcesses", keys.NUMBER,
        "Worker processes that run native delegates while several calls are under way; started when first needed.",
        DAEMON, default=2 if len(os.sched_getaffinity(0)) > 1 else 0, default_text="2, with one processor 0"
    )
    metrics_port: int = key(
        "metricsPort", keys.NUMBER, "TCP port of the Prometheus metrics; 0: none.", DAEMON, default=0,
        limits=(("maximum", 65535),)
    )
    metrics_address: str = key(
        "metricsAddress", keys.TEXT, "Address on which the metrics are served.", DAEMON, default="127.0.0.1"
    )
    drain_timeout: float = key(
        "drainTimeout", keys.SECONDS, "Time for calls under way when the daemon ends.", DAEMON, default=10.0
    )
    reconcile_interval: float = key(
        "reconcileInterval", keys.SECONDS, "Interval of the reconciler.", DAEMON, default=60.0
    )
    self_heal: bool = key(
        "selfHeal", keys.FLAG, "Attach a running pod's networks again when their interfaces vanished.", DAEMON,
        default=False
    )
    dynamic_attachments: bool = key(
        "dynamicAttachments", keys.FLAG, "Attach and detach networks of running pods when their annotation changes.",
        DAEMON, default=False
    )
    log_format: str = key(
        "logFormat", keys.choice("text", "json"), "Form of log lines.", DAEMON, default="text"
    )
    install: CniConfFile | None = None
    cni_bin_dir: Path | None = key(
        "cniBinDir", keys.PATH,
        "Folder of CNI plugins in which the daemon keeps the shim, as the daemon sees it; absent: it does not.",
        DAEMON, INSTALL, default=None
    )
    remove_on_exit: str = key(
        "removeOnExit", keys.choice(*REMOVE_ON_EXIT),
        "When the daemon ends, remove our CNI config file: never, when its DaemonSet was deleted, or always.", DAEMON,
        default="never"
    )
    certificate: NodeCertificate | None = None
    unknown: tuple[str, ...] = ()
    # fmt: on

    def effective(self, requested: Mapping[str, Any]) -> dict[str, Any]:
        """Return the plugin config of a request: its own keys, each replaced by the file's where the file has it."""
        return {**requested, **self.overlay}


# Keys that only the daemon config has: those of the dataclasses, and those that `parse` combines.
# fmt: off
KEYS = (
    *keys.declared(DaemonConfig),
    *keys.declared(CniConfFile),
    Key(
        "install", keys.FLAG,
        "Keep our CNI config file in cniConfigDir, as the one that sorts first.", (DAEMON, INSTALL),
        default_text="true when multusConfigFile is `auto`"
    ),
    Key("multusConfigFile", keys.TEXT, "`auto`, or the path of a CNI config file to copy.", (INSTALL,)),
    Key(
        "multusMasterCNI", keys.PATH_TEXT, "The default network's CNI config, a path or a file of multusAutoconfigDir.",
        (DAEMON, INSTALL), default_text="the file that sorts first"
    ),
    Key(
        "forceCNIVersion", keys.FLAG, "Write the cniVersion of this config, and no other version, into the file.",
        (INSTALL,), default=False
    ),
    Key(
        "perNodeCertificate",
        Kind("object", {"type": "object"}, Fields.table, members=(_ENABLED, *keys.declared(NodeCertificate))),
        "A client certificate of this node, used for all requests to the API server.", (DAEMON,)
    ),
    Key(
        "shimTimeout", Kind("number", {"type": "number", "exclusiveMinimum": 0}, Fields.get, unit="s"),
        "Limit of a whole call in the shim.", (SHIM,), default=180
    ),
    Key("enablePprof", keys.FLAG, "Accepted, without effect."),
)
# fmt: on
_OVERLAY = frozenset(each.name for each in plugin_config.KEYS if not each.of_protocol)
_KNOWN = frozenset(each.name for each in (*plugin_config.KEYS, *KEYS))
# Copied into our CNI config file, whose socketDir is the folder as the shim sees it.
_OF_SHIM = tuple(
    each.name
    for each in (*plugin_config.KEYS, *KEYS)
    if SHIM in each.readers and not each.of_protocol and each not in keys.attributes(DaemonConfig)["socket_dir"]
)


def parse(body: Mapping[str, Any]) -> DaemonConfig:
    """Read the file; an error (code 7) names the key. Keys that are not declared are in *unknown*."""
    fields = Fields(body, "daemon config")
    overlay = {name: value for name, value in body.items() if name in _OVERLAY}
    cni_dir = Path(fields.text("cniDir") or plugin_config.MultusConfig.cni_dir)
    found = DaemonConfig(
        **{
            "spool_dir": cni_dir / "spool",
            **keys.read(DaemonConfig, fields),
            "overlay": {**_default_network(fields), **overlay},
            "certificate": _certificate(fields, cni_dir),
            "unknown": tuple(sorted(name for name in body if name not in _KNOWN)),
        }
    )
    return replace(found, install=_conf_file(fields, found.cni_bin_dir)) if _installs(fields) else found


def load(path: Path) -> DaemonConfig:
    """Read the file at *path*; a warning names unknown keys."""
    from multus_py.cni.call import json_object

    try:
        text = path.read_bytes()
    except OSError as cause:
        raise CniError(Code.IO, f"cannot read the daemon config {path}: {cause.strerror}") from cause
    found = parse(json_object(text, str(path)))
    if found.unknown:
        log.warning("daemon config %s: unknown keys: %s", path, ", ".join(found.unknown))
    return found


def _certificate(fields: Fields, cni_dir: Path) -> NodeCertificate | None:
    """Read perNodeCertificate; None unless it is enabled."""
    own = Fields(fields.table("perNodeCertificate"), "daemon config: perNodeCertificate")
    if not own.flag("enabled"):
        return None
    if fields.text("manifests"):
        raise CniError(
            Code.INVALID_CONFIG,
            "daemon config: 'manifests' and 'perNodeCertificate' exclude each other: no API server is asked",
            "keep one",
        )
    return NodeCertificate(**{"folder": cni_dir / "certs", **keys.read(NodeCertificate, own)})


def _default_network(fields: Fields) -> dict[str, str]:
    """Return clusterNetwork from the keys of multus-cni's generator; {} where delegates has the default network."""
    if fields.tables("delegates"):
        return {}
    folder = fields.text("multusAutoconfigDir") or fields.text("cniConfigDir")
    master = fields.text("multusMasterCNI")
    if master and "/" not in master and folder:
        master = str(Path(folder) / master)
    if found := master or (folder and f"{folder.rstrip('/')}/"):
        return {"clusterNetwork": found}
    return {}


def _installs(fields: Fields) -> bool:
    """Return whether we write the runtime's config: if `install` is true, or as multus-cni's generator is asked to."""
    source = fields.text("multusConfigFile")
    if not fields.flag("install", default=source == "auto"):
        return False
    if source not in ("", "auto"):
        raise fields.error("multusConfigFile", "auto, or absent, where 'install' is true: our conf is not a copy")
    return True


def _conf_file(fields: Fields, bin_dir: Path | None) -> CniConfFile:
    """Return the CNI config file that the keys of multus-cni's generator describe."""
    network = fields.text("clusterNetwork") or _default_network(fields).get("clusterNetwork", "")
    socket_dir = fields.text("daemonSocketDir") or fields.text("socketDir") or str(DaemonConfig.socket_dir)
    return CniConfFile(
        **keys.read(CniConfFile, fields),
        bin_dir=bin_dir or CniConfFile.bin_dir,
        type=fields.text("type") or plugin_config.TYPE,
        default_network=network,
        wraps_primary=not (fields.tables("delegates") or (network and "/" not in network)),
        network=fields.text("name"),
        version=fields.text("cniVersion") if fields.flag("forceCNIVersion") else "",
        capabilities=tuple(name for name, value in fields.table("capabilities").items() if value is True),
        shim_keys={"socketDir": socket_dir, **{name: fields.body[name] for name in _OF_SHIM if name in fields.body}},
    )
