# SPDX-License-Identifier: Apache-2.0
"""What all tests share: a clean environment, a host and a pod made of namespaces, a real API server for the session."""

import os
from collections.abc import Iterator

import cluster
import pytest
from hypothesis import HealthCheck, settings
from namespaces import Site, site

from multus_py.kernel import netlink
from multus_py.kernel.netlink import Netlink

_LEAKS = ("CNI_", "KUBE", "K8S_", "MULTUS_", "NODE_NAME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_KUBECONFIG = os.environ.get("KUBECONFIG")

# The speed of generating examples is not tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables of the caller's environment that our code reads; a test sets what it needs."""
    for name in [name for name in os.environ if name.upper().startswith(_LEAKS)]:
        monkeypatch.delenv(name)


@pytest.fixture
def place() -> Iterator[Site]:
    """Return a host and a pod on it."""
    with site() as made:
        yield made


@pytest.fixture
def host(place: Site) -> Iterator[Netlink]:
    """Return a socket in the host's namespace."""
    with netlink.open(place.host) as kernel:
        yield kernel


@pytest.fixture
def pod(place: Site) -> Iterator[Netlink]:
    """Return a socket in the pod's namespace."""
    with netlink.open(place.pod) as kernel:
        yield kernel


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    """Start a real API server, without any node, for as long as the session lasts."""
    try:
        with cluster.start(tmp_path_factory.mktemp("cluster"), _KUBECONFIG) as found:
            yield found
    except cluster.NoCluster as reason:
        pytest.skip(str(reason))
