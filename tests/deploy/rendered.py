# SPDX-License-Identifier: Apache-2.0
"""The deployment manifests as kubectl renders them, for tests."""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
KUSTOMIZATIONS = [DEPLOY / "base", *sorted((DEPLOY / "overlays").iterdir())]


@functools.cache
def render(folder: Path) -> str:
    """Return what `kubectl apply -k` would send."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl on PATH")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rendered objects by kind; of several of one kind by kind/name."""
    found: dict[str, dict[str, Any]] = {}
    for body in yaml.safe_load_all(render(folder)):
        found[f"{body['kind']}/{body['metadata']['name']}"] = found[body["kind"]] = body
    return found


def pod(folder: Path) -> dict[str, Any]:
    """Return the spec of the DaemonSet's pods."""
    spec: dict[str, Any] = objects(folder)["DaemonSet"]["spec"]["template"]["spec"]
    return spec
