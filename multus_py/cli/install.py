# SPDX-License-Identifier: Apache-2.0
"""`multus-py install`: words to an `Order`, and what was written back to words."""

import argparse
import json
from pathlib import Path
from typing import Any

from multus_py.cni import versions
from multus_py.cni.errors import CniError, Code
from multus_py.config import TYPE
from multus_py.entry import install

_DESCRIPTION = """\
Put the plugin in front of a node's primary CNI: an executable launcher in the folder of CNI plugins, and a conf file
that the runtime reads first and that wraps the primary's. Run it again to renew both."""
_EPILOG = """\
examples:
  multus-py install --standalone --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d --manifests /etc/multus-py
  multus-py install --standalone --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d \\
      --kubeconfig /etc/kubernetes/multus.kubeconfig --primary /etc/cni/net.d/10-flannel.conflist"""


def add_parser(commands: Any) -> None:
    """Add the command to *commands*."""
    parser = commands.add_parser(
        "install", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_place(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifests", type=Path, metavar="DIR", help="folder of manifests: pods and definitions")
    source.add_argument("--kubeconfig", type=Path, metavar="FILE", help="kubeconfig of the cluster")
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
    keys = parser.add_argument_group("keys of the plugin's config")
    keys.add_argument("--cni-dir", metavar="DIR", help="cniDir: where the plugin keeps what it attached")
    keys.add_argument("--conf-dir", metavar="DIR", help="confDir: configs of definitions that carry none")
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
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where and under which name; uninstall has the same."""
    # Standalone is the one way to run so far; asking for it leaves room for another without changing what people typed.
    parser.add_argument("--standalone", action="store_true", required=True, help="the plugin process does all the work")
    parser.add_argument("--cni-bin-dir", type=Path, required=True, metavar="DIR", help="folder of CNI plugins")
    parser.add_argument("--cni-conf-dir", type=Path, required=True, metavar="DIR", help="folder of CNI conf files")
    parser.add_argument("--name", default=TYPE, help="name of the plugin (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Install and say what was written."""
    source = {"manifests": args.manifests} if args.manifests else {"kubeconfig": args.kubeconfig}
    done = install.install(
        install.Order(
            folders=install.Folders(args.cni_bin_dir, args.cni_conf_dir),
            source=source,
            name=args.name,
            primary=args.primary,
            version=args.cni_version,
            keys=_keys(args),
        )
    )
    if args.json:
        print(json.dumps(done.to_json(), indent=2))
    else:
        print(f"launcher  {done.launcher}\nconf      {done.conf}\nwraps     {done.primary}")
    return 0


def _keys(args: argparse.Namespace) -> dict[str, Any]:
    named = {
        "cniDir": args.cni_dir,
        "confDir": args.conf_dir,
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
        return key, json.loads(value)
    except ValueError:
        return key, value
