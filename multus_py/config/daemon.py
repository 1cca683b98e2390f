# SPDX-License-Identifier: Apache-2.0
"""The daemon's config file: the keys of multus-cni's daemon-config.json, of our plugin config, and the daemon's own."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multus_py.cni.errors import CniError, Code
from multus_py.cni.fields import Fields
from multus_py.config.plugin import TYPE
from multus_py.install.cni_conf import Folders, Order

log = logging.getLogger("multus_py")

# Keys of the request that belong to the runtime's own talk with us: the file's never replace them.
_PROTOCOL = """cniVersion cniVersions name type capabilities runtimeConfig prevResult args ipam dns disableCheck
    disableGC"""
# Keys of the plugin config (config.py): the file's value wins over the request's.
_PLUGIN = """confDir cniDir binDir delegates clusterNetwork defaultNetworks requireDefaultNetworks kubeconfig manifests
    logFile logLevel logToStderr logOptions readinessindicatorfile namespaceIsolation globalNamespaces systemNamespaces
    multusNamespace auxiliaryCNIChainName retryDeleteOnError delegateBackend apiDeadline execTimeout readinessTimeout
    nodeName podResourcesSocket deviceInfoDir allowedPlugins allowedFolders"""
# Keys that multus-cni's config generator and server read.
_DAEMON = """chrootDir socketDir daemonSocketDir connectionLimit metricsPort enablePprof perNodeCertificate
    multusConfigFile cniConfigDir multusAutoconfigDir multusMasterCNI forceCNIVersion overrideNetworkName"""
_OWN = """metricsAddress spoolDir concurrentAdds concurrentDeletes concurrentExecutables attachProcesses drainTimeout
    reconcileInterval selfHeal dynamicAttachments logFormat install cniBinDir removeOnExit shimTimeout"""
# Keys of our conf that the shim reads; socketDir is written as the node sees it.
_SHIM = ("cniDir", "spoolDir", "readinessTimeout", "shimTimeout")
# A time as Go writes it: time.ParseDuration.
_GO_TIME = re.compile(r"\+?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+", re.ASCII)
_GO_PART = re.compile(r"([\d.]+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# What an API server takes as expirationSeconds (certificates.k8s.io/v1).
_SHORTEST, _LONGEST = 600, 2**31 - 1
REMOVE_ON_EXIT = ("never", "deleted", "always")
_PLUGIN_KEYS = frozenset(_PLUGIN.split())
_KNOWN = _PLUGIN_KEYS.union(_PROTOCOL.split(), _DAEMON.split(), _OWN.split())


@dataclass(frozen=True)
class NodeCertificate:
    """A client certificate of the node's own: kept in *folder*, to live for so many *seconds*.

    The first one is asked for with the kubeconfig *bootstrap*; "": with the account that would be used without it.
    """

    folder: Path
    bootstrap: str = ""
    seconds: int = 600

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig that we write: with the certificate, or with the first account until there is one."""
        return self.folder / "multus-client.kubeconfig"


@dataclass(frozen=True)
class DaemonConfig:
    """What the platform team configured for the daemon. Times are in seconds; *overlay* goes over every request.

    *install* is the conf to keep in front of the default network's, None when somebody else does that. With
    *cni_bin_dir* the shim is kept in that folder, too. *remove_on_exit* is one of `REMOVE_ON_EXIT`.
    """

    overlay: Mapping[str, Any] = field(default_factory=dict)
    socket_dir: Path = Path("/run/multus")
    spool_dir: Path = Path("/var/lib/cni/multus/spool")
    chroot_dir: str = ""
    connection_limit: int = 1024
    concurrent_adds: int = 16
    concurrent_deletes: int = 16
    concurrent_executables: int = 32
    attach_processes: int = 2 if len(os.sched_getaffinity(0)) > 1 else 0
    metrics_port: int = 0
    metrics_address: str = "127.0.0.1"
    drain_timeout: float = 10.0
    reconcile_interval: float = 60.0
    self_heal: bool = False
    dynamic_attachments: bool = False
    log_format: str = "text"
    install: Order | None = None
    cni_bin_dir: Path | None = None
    remove_on_exit: str = "never"
    certificate: NodeCertificate | None = None
    unknown: tuple[str, ...] = ()

    def effective(self, requested: Mapping[str, Any]) -> dict[str, Any]:
        """Return the plugin config for a request: its own keys, the file's over them, whole key by whole key."""
        return {**requested, **self.overlay}


def parse(body: Mapping[str, Any]) -> DaemonConfig:
    """Read the file; code 7 names a key with a wrong value, keys that nobody knows are in *unknown*."""
    fields = Fields(body, "daemon config")
    if (log_format := fields.text("logFormat", "text")) not in ("text", "json"):
        raise fields.error("logFormat", "text or json")
    if (remove_on_exit := fields.text("removeOnExit", "never")) not in REMOVE_ON_EXIT:
        raise fields.error("removeOnExit", " or ".join(REMOVE_ON_EXIT))
    overlay = {key: value for key, value in body.items() if key in _PLUGIN_KEYS}
    cni_dir = Path(fields.text("cniDir") or "/var/lib/cni/multus")
    return DaemonConfig(
        overlay={**_primary(fields), **overlay},
        socket_dir=Path(fields.text("socketDir") or fields.text("daemonSocketDir") or DaemonConfig.socket_dir),
        spool_dir=Path(fields.text("spoolDir") or cni_dir / "spool"),
        chroot_dir=fields.text("chrootDir"),
        connection_limit=fields.number("connectionLimit") or DaemonConfig.connection_limit,
        concurrent_adds=fields.number("concurrentAdds") or DaemonConfig.concurrent_adds,
        concurrent_deletes=fields.number("concurrentDeletes") or DaemonConfig.concurrent_deletes,
        attach_processes=_share(fields),
        concurrent_executables=fields.number("concurrentExecutables") or DaemonConfig.concurrent_executables,
        metrics_port=fields.number("metricsPort"),
        metrics_address=fields.text("metricsAddress") or DaemonConfig.metrics_address,
        drain_timeout=fields.seconds("drainTimeout", DaemonConfig.drain_timeout),
        reconcile_interval=fields.seconds("reconcileInterval", DaemonConfig.reconcile_interval),
        self_heal=fields.flag("selfHeal"),
        dynamic_attachments=fields.flag("dynamicAttachments"),
        log_format=log_format,
        install=_order(fields, body) if _installs(fields) else None,
        cni_bin_dir=Path(fields.text("cniBinDir")) if fields.text("cniBinDir") else None,
        remove_on_exit=remove_on_exit,
        certificate=_certificate(fields, cni_dir),
        unknown=tuple(sorted(key for key in body if key not in _KNOWN)),
    )


def _share(fields: Fields) -> int:
    """Return how many processes share a burst: unless it is said, two, or none where there is but one processor."""
    if fields.get("attachProcesses") is not None:
        return fields.number("attachProcesses")
    return DaemonConfig.attach_processes


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
    return NodeCertificate(
        Path(own.text("certDir") or cni_dir / "certs"),
        own.text("bootstrapKubeconfig"),
        _go_seconds(own, "certDuration", NodeCertificate.seconds),
    )


def _go_seconds(fields: Fields, key: str, default: int) -> int:
    """Return how long a certificate is to live, in seconds; it is written as Go does: 24h, 1h30m."""
    text = fields.text(key) or f"{default}s"
    parts = _GO_PART.findall(text) if _GO_TIME.fullmatch(text) else []
    seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in parts)
    if not _SHORTEST <= seconds <= _LONGEST:
        raise fields.error(key, "a time such as 24h, 10m at least and 68 years at most")
    return int(seconds)


def load(path: Path) -> DaemonConfig:
    """Read the file at *path*; unknown keys are named in a warning."""
    from multus_py.cni.call import json_object

    try:
        text = path.read_bytes()
    except OSError as cause:
        raise CniError(Code.IO, f"cannot read the daemon config {path}: {cause.strerror}") from cause
    found = parse(json_object(text, str(path)))
    if found.unknown:
        log.warning("daemon config %s: keys that nobody knows: %s", path, ", ".join(found.unknown))
    return found


def _primary(fields: Fields) -> dict[str, str]:
    """Return where the default network's config is, when neither clusterNetwork nor delegates names it."""
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
    """Tell whether we write the runtime's conf: when 'install' says so, or as multus-cni's generator is asked to."""
    source = fields.text("multusConfigFile")
    if not fields.flag("install", default=source == "auto"):
        return False
    if source not in ("", "auto"):
        raise fields.error("multusConfigFile", "auto, or absent, where 'install' is true: our conf is not a copy")
    return True


def _order(fields: Fields, body: Mapping[str, Any]) -> Order:
    """Return the conf that multus-cni's generator keys describe."""
    conf = Path(fields.text("cniConfigDir") or "/etc/cni/net.d")
    look_in = Path(fields.text("multusAutoconfigDir") or conf)
    network = fields.text("clusterNetwork") or _primary(fields).get("clusterNetwork", "")
    master = Path(network) if "/" in network else None
    if master and (master.is_dir() or network.endswith("/")):
        look_in, master = master, None
    keys = {"socketDir": fields.text("daemonSocketDir") or fields.text("socketDir") or str(DaemonConfig.socket_dir)}
    return Order(
        folders=Folders(Path(fields.text("cniBinDir") or "/opt/cni/bin"), conf),
        name=fields.text("type") or TYPE,
        primary=master,
        version=fields.text("cniVersion") if fields.flag("forceCNIVersion") else "",
        keys={**keys, **{key: body[key] for key in _SHIM if key in body}},
        look_in=look_in,
        wraps=not (fields.tables("delegates") or (network and "/" not in network)),
        network=fields.text("name"),
        primary_name=fields.flag("overrideNetworkName"),
        capabilities={key: True for key, wanted in fields.table("capabilities").items() if wanted is True},
    )
