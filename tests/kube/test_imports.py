# SPDX-License-Identifier: Apache-2.0
"""The kubernetes package under threads that need it first at the same time."""

import subprocess
import sys
from pathlib import Path

from cluster import kubeconfig_text

# The folder of the package is slow to find, so that all of them are on their way into it.
TOGETHER = """
import sys, threading, time
from multus_py.cni.errors import CniError
from multus_py.kube.apiserver import ApiServer
from multus_py.kube.http import Request
from multus_py.kube.session import Client
from multus_py.kube.store import PodRef

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "kubernetes":
            time.sleep(0.3)

sys.meta_path.insert(0, Slow())
where, gate, troubles = sys.argv[1], threading.Barrier(4), []

def attempt(deed):
    gate.wait()
    try:
        deed()
    except CniError:
        pass
    except BaseException as trouble:
        troubles.append(repr(trouble))

def ask():
    Client(where).send(Request("GET", "/x", "read x", "get x"), time.monotonic() + 1)

threads = [threading.Thread(target=attempt, args=(deed,))
           for deed in (ask, ask, lambda: ApiServer(where, 1).pod(PodRef("a", "b")), lambda: Client(where).expiry())]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit("; ".join(troubles) or 0)
"""


def test_threads_that_ask_first_at_the_same_time_all_ask(tmp_path: Path) -> None:
    """A keeper, two watches and a verb begin together: none of them finds half of the package."""
    where = tmp_path / "kubeconfig"
    where.write_text(kubeconfig_text("http://127.0.0.1:9", {"token": "t"}))
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", TOGETHER, str(where)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
