# SPDX-License-Identifier: Apache-2.0
"""`multus-py install`: the options as an `InstallSpec`, and the report of the written files."""

import argparse
import json
from pathlib import Path
from typing import Any

from multus_py.cni import jsontext, versions
from multus_py.cni.errors import CniError, Code
from multus_py.config.plugin import TYPE
from multus_py.install import executable, installation
from multus_py.install.cni_conf import Folders, InstallSpec

_DESCRIPTION = """\
Install an executable in the folder of CNI plugins, and a CNI config file that sorts first and wraps the default
network's. Run it again to update both.

On a cluster the executable is the shim, a static program that talks to `multus-py daemon`. With --standalone it is a
launcher of this Python, which does all the work. multus-cni's own conf is set aside until `multus-py uninstall`,
and so is its executable when --name is multus-shim or multus."""
_EPILOG = """\
examples:
  multus-py install --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d
  multus-py install --cni-bin-dir /opt/cni/bin --shim-only
  multus-py install --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d --name multus-shim
  multus-py install --standalone --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d --manifests /etc/multus-py
  multus-py install --standalone --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d \\
      --kubeconfig /etc/kubernetes/multus.kubeconfig --primary /etc/cni/net.d/10-flannel.conflist"""


def add_parser(commands: Any) -> None:
    """Add the command to *commands*."""
    parser = commands.add_parser(
        "install", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_folder_options(parser)
    parser.add_argument(
        "--primary", type=Path, metavar="FILE", help="conf to wrap (default: the first in the conf folder)"
    )
    parser.add_argument(
        "--cni-version",
        default="",
        choices=versions.SUPPORTED,
        metavar="V",
        help="pin cniVersion (default: 1.0.0, with 0.4.0 and 1.1.0 on offer to runtimes that read cniVersions)",
    )
    daemon = parser.add_argument_group("with a daemon")
    daemon.add_argument("--machine", metavar="M", help="the node's machine, as in uname -m (default: this one's)")
    daemon.add_argument(
        "--shim-only", action="store_true", help="write no conf: the daemon does, when its config says 'install': true"
    )
    alone = parser.add_argument_group("with --standalone, one of")
    source = alone.add_mutually_exclusive_group()
    source.add_argument("--manifests", type=Path, metavar="DIR", help="folder of manifests: pods and definitions")
    source.add_argument("--kubeconfig", type=Path, metavar="FILE", help="kubeconfig of the cluster")
    _add_keys(parser)
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def _add_keys(parser: argparse.ArgumentParser) -> None:
    keys = parser.add_argument_group("keys of the plugin's config")
    keys.add_argument(
        "--socket-dir", metavar="DIR", help="socketDir: folder of the daemon's socket, as the node sees it"
    )
    keys.add_argument("--cni-dir", metavar="DIR", help="cniDir: folder of the journal and the cached results")
    keys.add_argument("--conf-dir", metavar="DIR", help="confDir: configs of definitions that carry none")
    keys.add_argument(
        "--readiness-file", metavar="FILE", help="readinessindicatorfile: no pod is attached before it exists"
    )
    keys.add_argument(
        "--delegate-backend", choices=("auto", "builtin", "exec"), help="delegateBackend: who runs the delegates"
    )
    keys.add_argument(
        "--namespace-isolation", action="store_true", help="namespaceIsolation: only a pod's own namespace"
    )
    keys.add_argument("--log-file", metavar="FILE", help="logFile")
    keys.add_argument("--log-level", choices=("debug", "verbose", "error", "panic"), help="logLevel")
    keys.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key; VALUE is JSON, or else plain text",
    )


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the folders and the name of the plugin; uninstall has the same."""
    parser.add_argument("--standalone", action="store_true", help="no daemon: the plugin process does all the work")
    parser.add_argument("--cni-bin-dir", type=Path, required=True, metavar="DIR", help="folder of CNI plugins")
    parser.add_argument("--cni-conf-dir", type=Path, metavar="DIR", help="folder of CNI conf files")
    parser.add_argument("--name", default=TYPE, help="name of the plugin (default: %(default)s)")


def conf_folder(args: argparse.Namespace) -> Path:
    """Return the folder that --cni-conf-dir names."""
    if args.cni_conf_dir is None:
        raise CniError(Code.INVALID_CONFIG, "--cni-conf-dir is missing", "name the folder that the runtime reads")
    return Path(args.cni_conf_dir)


def run(args: argparse.Namespace) -> int:
    """Install and print what was written."""
    if args.shim_only:
        folder = Path(args.socket_dir or installation.SOCKET_DIR)
        placed = installation.install_executable(args.cni_bin_dir, args.name, executable.shim_for(args.machine), folder)
        print(json.dumps({"executable": str(placed)}, indent=2) if args.json else f"executable  {placed}")
        return 0
    source = {"manifests": args.manifests, "kubeconfig": args.kubeconfig}
    order = InstallSpec(
        folders=Folders(args.cni_bin_dir, conf_folder(args)),
        source={key: path for key, path in source.items() if path},
        name=args.name,
        primary=args.primary,
        version=args.cni_version,
        keys=_keys(args),
    )
    if args.standalone != bool(order.source):
        raise CniError(
            Code.INVALID_CONFIG,
            "--standalone needs --manifests or --kubeconfig"
            if args.standalone
            else "--manifests and --kubeconfig need --standalone",
            "with a daemon, its own config says where pods and definitions are",
        )
    done = installation.install(order, executable.launcher() if args.standalone else executable.shim_for(args.machine))
    if args.json:
        print(json.dumps(done.to_json(), indent=2))
        return 0
    print(f"executable  {done.executable}\nconf        {done.conf}\nwraps       {done.primary}")
    for path in done.backed_up:
        print(f"set aside   {path}")
    return 0


def _keys(args: argparse.Namespace) -> dict[str, Any]:
    named = {
        "socketDir": args.socket_dir,
        "cniDir": args.cni_dir,
        "confDir": args.conf_dir,
        "readinessindicatorfile": args.readiness_file,
        "delegateBackend": args.delegate_backend,
        "namespaceIsolation": args.namespace_isolation,
        "logFile": args.log_file,
        "logLevel": args.log_level,
    }
    return {**{key: value for key, value in named.items() if value}, **dict(_pair(text) for text in args.set)}


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise CniError(Code.INVALID_CONFIG, f"--set {text!r} is not KEY=VALUE", "example: --set apiDeadline=5")
    try:
        return key, jsontext.parse(value)
    except ValueError:
        return key, value
