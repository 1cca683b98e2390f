# SPDX-License-Identifier: Apache-2.0
"""What a start costs: packages that a call does not need are not imported."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("kubernetes", "pyroute2", "jsonschema", "yaml", "tenacity", "grpc", "cryptography", "importlib.metadata")
PROGRAM = """
import sys
from multus_py.cli.main import main
try:
    code = main(["plugin"])
except SystemExit as end:
    code = end.code
print("#" + ",".join(name for name in {heavy!r} if name in sys.modules))
raise SystemExit(code)
"""


def started(verb, config, **env):
    """Run the plugin process; return its exit code, its answer and which heavy packages it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=HEAVY)],
        input=json.dumps(config).encode(),
        env={"PATH": os.environ["PATH"], "CNI_COMMAND": verb, **env},
        capture_output=True,
        check=False,
    )
    answer, _, heavy = done.stdout.decode().strip().rpartition("#")
    return done.returncode, json.loads(answer or "null"), heavy


def test_version_imports_nothing_heavy():
    """VERSION is asked often, by whoever validates a list: it answers from the protocol alone."""
    code, body, heavy = started("VERSION", {"cniVersion": "1.0.0"})
    assert (0, "1.0.0", "") == (code, body["cniVersion"], heavy)


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_the_attach_path_does_not_pay_for_schemas_or_the_cluster(tmp_path, verb):
    """With inline delegates and no store no package but our own is imported."""
    config = {"cniVersion": "1.0.0", "name": "n", "type": "multus-py", "cniDir": str(tmp_path),
              "delegates": [{"cniVersion": "1.0.0", "name": "d", "type": "passthru"}]}  # fmt: skip
    env = {"CNI_CONTAINERID": "c", "CNI_IFNAME": "mpt-none", "CNI_PATH": "/x", "CNI_NETNS": "/proc/self/ns/net"}
    code, body, heavy = started(verb, config, CNI_NETNS_OVERRIDE="1", **env)
    assert (0, "") == (code, heavy), body
