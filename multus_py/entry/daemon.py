# SPDX-License-Identifier: Apache-2.0
"""The daemon process: one a node. Start, serve until SIGTERM, drain, shut down."""

import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multus_py.agent.concurrency.call_limits import CallLimits
from multus_py.agent.concurrency.spawner import Spawner
from multus_py.agent.concurrency.workers import Workers
from multus_py.agent.node.conf_keeper import Callbacks, ConfKeeper, Installation
from multus_py.agent.node.default_network import Clock, Found
from multus_py.agent.reconciling.dynamic_attachments import DynamicAttachments
from multus_py.agent.reconciling.reconciler import Reconciler
from multus_py.agent.serving import api
from multus_py.agent.serving.metrics import Metrics
from multus_py.agent.serving.service import Service
from multus_py.cni.errors import CniError, Code
from multus_py.config import daemon as daemon_config
from multus_py.config import plugin as configs
from multus_py.config.daemon import DaemonConfig
from multus_py.config.plugin import MultusConfig
from multus_py.entry import logs
from multus_py.entry.signals import Signals
from multus_py.install import cni_conf, executable, installation
from multus_py.kube.store import NodeStore, PodRef
from multus_py.state.spool import Spool
from multus_py.verbs import plugins

if TYPE_CHECKING:
    from multus_py.agent.node.certificate import CertificateRotation

log = logging.getLogger("multus_py")

# Where plugins find the node's iptables, nft and tc: our own PATH is that of an image which has none of them.
_NODES_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_M_ARENA_MAX = -8  # mallopt(3); a C library without arenas ignores it
_TICK = 1.0  # seconds between two checks of the config file, the conf folder and the spool
_RETRY_SECONDS = 60.0  # seconds until a retry after an unexpected error
_SOON = 0.05  # the same, as long as pods wait for us
_LOCK_WAIT = 15.0  # seconds for the daemon before us to go
_CLOSE_SECONDS = 5.0  # seconds for those who connected just before the socket went
_NORMAL_REASONS = ("CertificateRequested",)  # reasons of Events that only say what is to be done
_ENDS = frozenset((signal.SIGTERM, signal.SIGINT))
_OWNER_SECONDS = 5.0  # seconds to learn whether our DaemonSet was deleted


def main(path: Path) -> int:
    """Run the daemon with the config file at *path* until SIGTERM or SIGINT; return the exit code."""
    config = daemon_config.load(path)
    start_logs(config)
    if os.geteuid() != 0:
        raise CniError(Code.INTERNAL, "the daemon needs root", "it works in the pods' network namespaces")
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)  # an arena for each of many short-lived threads is memory for nothing
    daemon = Daemon(path, config)
    daemon.start()
    return daemon.serve()


def once(path: Path) -> installation.Remaining:
    """Make up for the DELs that wait and release dead sandboxes, without a daemon; return what is left."""
    config = daemon_config.load(path)
    start_logs(config)
    daemon = Daemon(path, config)
    return daemon.clean()


def start_logs(config: DaemonConfig) -> None:
    """Set up logging as configured; the default level of a daemon is info."""
    body = {"name": "multus-py", **config.overlay}
    logs.start(configs.parse({"logLevel": "info", **body}), json_lines=config.log_format == "json")


class Daemon:
    """The parts of the process and the order in which they begin and end."""

    def __init__(self, path: Path, config: DaemonConfig) -> None:
        self._path = path
        self._over = threading.Event()
        self._metrics = Metrics()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
        if config.chroot_dir:
            environment["PATH"] = _NODES_PATH
        limits = CallLimits(config.concurrent_adds, config.concurrent_deletes)
        self._spawner = Spawner(config.chroot_dir, environment, config.concurrent_executables, limits.release)
        self._keeper = _keeper(config, self._happened)
        self._store = _store(config)
        self._workers = Workers(config.attach_processes, limits, self._metrics.delegated)
        self._service = Service(config, self._store, self._spawner, self._metrics, limits, self._workers)
        self._reconciler = Reconciler(
            Spool(config.spool_dir),
            self._service.replay,
            lambda kind: self._metrics.repairs.labels(kind).inc(),
            config.self_heal,
        )
        self._dynamic = DynamicAttachments(
            self._service.own_node,
            lambda: self._service.config.dynamic_attachments,
            self._service.ready,
            limits.admitted,
            self._store.pods_here if self._store else list,
        )
        self._seen = _stamp(path)
        self._conf_keeper = ConfKeeper(
            _installation(config),
            Callbacks(self._default_network_changed, self._happened),
            Clock(time.monotonic, time.time),
        )

    def start(self) -> None:
        """Answer DEL and health at once, the rest when the store is synced; the spool is replayed in the background."""
        config = self._service.config
        self._lock = _lock_folder(config.socket_dir, _LOCK_WAIT)
        plugins.preload()
        self._signals = Signals((*_ENDS, signal.SIGHUP))
        if os.getpid() == 1:
            signal.signal(signal.SIGCHLD, _reap)
        self._server = api.listen(config.socket_dir / "multus.sock", self._service, config.connection_limit)
        self._thread(self._server.serve_forever, "socket")
        self._add_gauges(config)
        if self._keeper:
            self._keeper.settle()
            self._certificate_thread = self._thread(partial(self._keep_certificate, self._keeper), "certificate")
        if self._store:
            self._store.subscribe(self._dynamic.pod_changed, self._dynamic.definition_changed)
            self._store.start()
        self._dynamic.queue.start()
        self._check_conf()
        self._following = self._thread(self._follow_folder, "conf folder")
        self._thread(self._reconcile_forever, "reconciler")
        log.info("listening on %s", config.socket_dir / "multus.sock")

    def serve(self) -> int:
        """Wait for SIGTERM or SIGINT; then finish the calls in progress, within the drain time."""
        while not _ENDS & (asked := self._signals.wait(_TICK if self._service.serving.is_set() else _SOON)):
            self._follow_store()
            self._follow_config(again=signal.SIGHUP in asked)
        self._over.set()
        config = self._service.config
        self._service.serving.clear()
        self._dynamic.queue.close()
        self._following.join(_CLOSE_SECONDS)  # it should not write over what the next daemon wrote
        log.info("told to end: %d calls under way", self._service.limits.in_progress)
        drained = self._service.limits.drain(config.drain_timeout)
        if not drained:
            log.warning("%d calls are cut off after %g s; the journal knows them", self._service.limits.in_progress,
                        config.drain_timeout)  # fmt: skip
        self._server.finish(_CLOSE_SECONDS)
        self._uninstall(config)
        if self._keeper:
            self._keeper.close()
        self._workers.close()
        self._spawner.close()
        if self._store:
            self._store.close()
        return 0

    def _follow_store(self) -> None:
        """Be ready when the store is, and without a store at once."""
        if (self._store is None or self._store.ready()) and not self._service.serving.is_set():
            log.info("ready")
            self._service.serving.set()
            self._dynamic.process_all()

    def _follow_config(self, *, again: bool) -> None:
        """Read the file when it changed, or *again* as SIGHUP asks for; what cannot be read changes nothing."""
        stamp = _stamp(self._path)
        if stamp == self._seen and not again:
            return
        self._seen = stamp
        try:
            config = daemon_config.load(self._path)
            self._conf_keeper.installation = _installation(config)
            start_logs(config)
        except CniError as error:
            log.warning("the config stays as it was: %s", error)
            return
        self._service.config = config
        self._reconciler.heal = config.self_heal
        self._dynamic.config_changed()
        log.info("config read again from %s", self._path)

    def _reconcile_forever(self) -> None:
        """Replay the spool as soon as it has entries; reconcile the node at intervals."""
        next_round = 0.0
        while True:
            try:
                self._reconciler.replay_spool()
                if time.monotonic() >= next_round:
                    next_round = time.monotonic() + self._service.config.reconcile_interval
                    self._round()
            except Exception:
                log.exception("unexpected error in the reconciler; it continues")
            if self._over.wait(_TICK):
                return

    def _round(self) -> None:
        self._dynamic.process_all()
        node = self._service.own_node()
        self._reconciler.release_dead(node)
        if self._service.ready() and self._store:
            self._reconciler.report_missing(node, self._store.pods_here())

    def _keep_certificate(self, keeper: "CertificateRotation") -> None:
        """Have the node's client certificate asked for and renewed."""
        pause = 0.0
        while not self._over.wait(pause):
            try:
                pause = keeper.advance()
            except Exception:
                log.exception("unexpected error with the client certificate; it continues")
                pause = _RETRY_SECONDS

    def _add_gauges(self, config: DaemonConfig) -> None:
        node = self._service.own_node()
        self._metrics.gauge("journal_sandboxes", "Sandboxes in the journal", lambda: len(node.journal.sandboxes()))
        self._metrics.gauge("spool_tombstones", "DELs to be replayed", lambda: len(self._reconciler.spool))
        self._metrics.gauge(
            "journal_failures", "Networks that did not come to be and could not be taken back",
            lambda: self._reconciler.left,
        )  # fmt: skip
        self._metrics.gauge(
            "calls_under_way", "Calls being worked on or waiting", lambda: self._service.limits.in_progress
        )
        for gauge in self._store.gauges() if self._store else ():
            self._metrics.gauge(*gauge)
        if self._keeper:
            words = "When the client certificate expires, in Unix seconds; 0: there is none"
            self._metrics.gauge("certificate_expiry", words, self._keeper.expiry)
        if config.install:
            target = cni_conf.install_spec(config.install).target
            self._metrics.gauge(
                "conf_in_place", "Whether our conf is in place", lambda: cni_conf.read(target) is not None
            )
            self._metrics.gauge(
                "default_network_found",
                "Whether the default network's conf is there",
                lambda: not self._service.obstacle,
            )
        if config.metrics_port:
            self._metrics.serve(config.metrics_address, config.metrics_port)

    def _follow_folder(self) -> None:
        """Keep our place in front of the default network."""
        while not self._over.wait(_TICK):
            self._check_conf()

    def _check_conf(self) -> None:
        try:
            self._conf_keeper.check()
        except Exception:
            log.exception("unexpected error while checking the conf folder; it continues")

    def _default_network_changed(self, found: Found) -> None:
        self._service.network = {"clusterNetwork": str(found.conf.path)} if found.conf else {}
        self._service.obstacle = found.obstacle

    def _happened(self, kind: str, reason: str, words: str) -> None:
        """Count an action, and publish it as an Event of our own pod, when we run in one."""
        self._metrics.repairs.labels(kind).inc()
        ref = _own_pod()
        if not reason or ref is None or self._store is None:
            return
        try:
            self._store.event(self._store.pod(ref), "Normal" if reason in _NORMAL_REASONS else "Warning", reason, words)
        except CniError as error:
            log.warning("event %s was not published: %s", reason, error)

    def _uninstall(self, config: DaemonConfig) -> None:
        """Remove our conf when the config says so, never because the daemon is only replaced."""
        if config.install is None or not _must_uninstall(config, self._keeper):
            return
        order = cni_conf.install_spec(config.install)
        folders, name = order.folders, order.name
        try:
            cni_dir = self._service.own_node().config.cni_dir
            keep = config.cni_bin_dir is None
            removal = installation.UninstallRequest(folders, name, keep, cni_dir, config.socket_dir, daemon_stays=False)
            done = installation.uninstall(removal)
        except CniError as error:
            log.error("%s", error)  # noqa: TRY400  what is told is the reason, not the place
            return
        if self._keeper and config.remove_on_exit == "deleted":
            self._keeper.close()
            self._certificate_thread.join(_OWNER_SECONDS / 2)  # it must not write what is removed now
            self._keeper.remove_files()
        log.info("%s was removed; %d sandboxes are left", order.target, done.remaining.sandboxes)

    def clean(self) -> installation.Remaining:
        """Do once, without serving, what the daemon does for sandboxes that are gone."""
        config = self._service.config
        _lock_folder(config.socket_dir, 0.0)
        plugins.preload()
        node = self._service.own_node()
        if self._keeper:
            self._keeper.settle()
        try:
            self._reconciler.replay_all()
            self._reconciler.release_dead(node)
        finally:
            self._spawner.close()
        return installation.remaining(node.config.cni_dir, config.spool_dir)

    def _thread(self, work: Callable[[], Any], name: str) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread


def _installation(config: DaemonConfig) -> Installation | None:
    """Return what is kept installed; the shim is not run as a test: its folder may be on another root."""
    if config.install is None:
        return None
    program = replace(executable.shim_for(), runs_here=False) if config.cni_bin_dir else None
    return Installation(cni_conf.install_spec(config.install), config.socket_dir, program)


def _own_pod() -> PodRef | None:
    """Return the pod of this process from the downward API; None without it."""
    namespace, name = os.environ.get("POD_NAMESPACE", ""), os.environ.get("POD_NAME", "")
    return PodRef(namespace, name) if namespace and name else None


def _must_uninstall(config: DaemonConfig, keeper: "CertificateRotation | None") -> bool:
    if config.remove_on_exit != "deleted":
        return config.remove_on_exit == "always"
    settings = configs.parse({"name": "multus-py", **config.overlay})
    ref = _own_pod()
    if ref is None or not (_kubeconfig(config, settings) or os.environ.get("KUBERNETES_SERVICE_HOST")):
        log.warning("our conf stays: POD_NAMESPACE, POD_NAME and an API server are needed to know whose pod this is")
        return False
    from multus_py.kube import daemonset
    from multus_py.kube.session import Client

    try:
        if keeper:
            keeper.verify(
                _OWNER_SECONDS / 2
            )  # without a certificate every request is refused, not because the DaemonSet was deleted
        return daemonset.is_deleted(Client(_kubeconfig(config, settings)), ref, _OWNER_SECONDS)
    except CniError as error:
        log.warning("our conf stays: %s", error)
        return False


def _store(config: DaemonConfig) -> NodeStore | None:
    """Return the store: a folder of manifests, or copies of what the API server holds for this node."""
    settings = configs.parse({"name": "multus-py", **config.overlay})
    if settings.manifests:
        from multus_py.kube.polled import Polled

        return Polled(Path(settings.manifests), settings.cni_dir / "pods")
    kubeconfig = _kubeconfig(config, settings)
    if kubeconfig or os.environ.get("KUBERNETES_SERVICE_HOST"):
        from multus_py.kube.cached_apiserver import CachedApiServer

        return CachedApiServer(kubeconfig, settings.api_deadline, _node_name(settings))
    return None


def _keeper(config: DaemonConfig, report: Callable[[str, str, str], None]) -> "CertificateRotation | None":
    """Return the rotation of the node's client certificate, None when it is not configured."""
    if config.certificate is None:
        return None
    # With it comes the cryptography package: 0.1 s, 20 MB.
    from multus_py.agent.node.certificate import CertificateRotation, Environment
    from multus_py.kube import kubeconfig

    settings = configs.parse({"name": "multus-py", **config.overlay})
    first = config.certificate.bootstrap or settings.kubeconfig
    bootstrap = partial(kubeconfig.read, Path(first)) if first else partial(kubeconfig.in_cluster, os.environ)
    world = Environment(bootstrap, Clock(time.monotonic, time.time), report)
    return CertificateRotation(config.certificate, _node_name(settings), world)


def _kubeconfig(config: DaemonConfig, settings: MultusConfig) -> str | None:
    """Return the kubeconfig to ask the API server with, None for the account of our pod."""
    return str(config.certificate.kubeconfig) if config.certificate else settings.kubeconfig or None


def _node_name(settings: MultusConfig) -> str:
    return settings.node_name or os.environ.get("MULTUS_NODE_NAME", "") or os.uname().nodename


def _lock_folder(folder: Path, timeout: float) -> int:
    """Hold the folder's lock: two daemons on one socket would both think that they own the node."""
    import fcntl

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / ".daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            if time.monotonic() >= end:
                raise CniError(Code.TRY_AGAIN, f"another daemon serves {folder}", "stop it first") from cause
            time.sleep(0.1)
        else:
            return lock


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _reap(*_: object) -> None:
    """Collect what others left to process 1."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return
