# SPDX-License-Identifier: Apache-2.0
"""The schemas accept what is documented, and messages name the place and the fix."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from multus_py.config import validate
from multus_py.config.plugin import parse
from multus_py.config.selection import parse as parse_selection
from multus_py.config.validate import problems
from multus_py.kube.store import NETWORKS

SCHEMAS = Path(validate.__file__).parent / "schemas"
ELEMENT = {
    "name": "net.dotted",
    "namespace": "ns",
    "ips": ["10.0.0.5/24", "fd00::5"],
    "mac": "02:00:00:00:00:01",
    "infiniband-guid": "11:22:33:44:55:66:77:88",
    "interface": "net7",
    "interfaceRequest": "net7",
    "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}],
    "bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4},
    "deviceID": "0000:01:00.1",
    "cni-args": {"k": [None]},
    "default-route": ["10.0.0.1", "fd00::1", "fd00::2"],
}
CONFIG: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "multus-cni-network",
    "type": "multus-py",
    "capabilities": {"portMappings": True},
    "confDir": "/c",
    "cniDir": "/d",
    "binDir": "/b",
    "clusterNetwork": "/etc/cni/net.d/10-x.conflist",
    "defaultNetworks": ["a"],
    "requireDefaultNetworks": False,
    "manifests": "/m",
    "logFile": "/l",
    "logLevel": "verbose",
    "logToStderr": False,
    "logOptions": {"maxAge": 1, "maxSize": 2, "maxBackups": 3, "compress": False},
    "runtimeConfig": {},
    "readinessindicatorfile": "/r",
    "readinessTimeout": 1.5,
    "namespaceIsolation": True,
    "globalNamespaces": "default,x",
    "systemNamespaces": ["kube-system"],
    "multusNamespace": "kube-system",
    "auxiliaryCNIChainName": "aux",
    "retryDeleteOnError": True,
    "delegateBackend": "builtin",
    "apiDeadline": 3,
    "execTimeout": 0.5,
    "nodeName": "n",
}
DAEMON = {
    "chrootDir": "/hostroot",
    "socketDir": "/run/multus",
    "connectionLimit": 8,
    "metricsPort": 9091,
    "enablePprof": False,
    "perNodeCertificate": {"enabled": True, "bootstrapKubeconfig": "/k", "certDir": "/c", "certDuration": "24h"},
    "multusConfigFile": "auto",
    "cniConfigDir": "/etc/cni/net.d",
    "multusAutoconfigDir": "/etc/cni/net.d",
    "multusMasterCNI": "10-x.conflist",
    "forceCNIVersion": True,
    "overrideNetworkName": True,
    "daemonSocketDir": "/run/multus",
}
DEFINITION = {"kind": "NetworkAttachmentDefinition", "apiVersion": "k8s.cni.cncf.io/v1", "metadata": {"name": "a"}}
HOST_LOCAL = {"type": "host-local", "subnt": "10.0.0.0/8"}
PORT_0 = {"hostPort": 0, "containerPort": 1}
BRIDGE = {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "br0", "ipam": {"type": "static"}}


def errors(document: object, schema: str) -> list[tuple[str, str, str]]:
    """Return place, message and fix of each error (no notes)."""
    found = problems(document, schema)
    return [(problem.where, problem.message, problem.fix) for problem in found if not problem.note]


@pytest.mark.parametrize("name", validate.schemas())
def test_each_schema_is_valid_and_explains_every_key(name: str) -> None:
    """A schema is one of JSON Schema 2020-12, and every property has a description or is fixed."""
    body = validate.schemas()[name]
    Draft202012Validator.check_schema(body)
    assert body["description"]
    for key, part in body.get("properties", {}).items():
        assert {"description", "const", "items", "properties", "$ref"} & set(part), key


@pytest.mark.parametrize(
    ("document", "schema"),
    [
        ([ELEMENT], "networks"),
        ([{"name": "a", "ipam-claim-reference": "claim"}], "networks"),
        ([{"name": "a", "org.example.ips": 1, "com.example.name": []}], "networks"),
        ([], "networks"),
        (CONFIG, "config"),
        ({**DAEMON, **CONFIG}, "daemon"),
        ({}, "daemon"),
        (BRIDGE, "network"),
        (
            {"cniVersion": "1.0.0", "name": "n", "plugins": [BRIDGE, {"type": "tuning", "anything": {"at": "all"}}]},
            "network",
        ),
        ({**BRIDGE, "ipMasq": True, "args": {"cni": {}}, "capabilities": {"ips": True}}, "network"),
        ({**BRIDGE, "x.example.org/note": 1, "runtimeConfig": {}, "dns": {}}, "network"),
    ],
)
def test_what_is_documented_passes(document: object, schema: str) -> None:
    """Every documented key with a valid value has no problem."""
    assert [] == problems(document, schema)


def test_what_passes_is_what_the_plugin_reads() -> None:
    """The schema's full examples are read by the plugin's own parsers too."""
    assert parse(CONFIG).backend == "builtin"
    assert parse_selection(json.dumps([ELEMENT]), "default")[0].interface == "net7"


@pytest.mark.parametrize(
    ("document", "schema", "expected"),
    [
        ({**BRIDGE, "isGatway": True}, "network", ("isGatway", None, "did you mean 'isGateway'?")),
        ({**BRIDGE, "mtu": "9"}, "network", ("mtu", 'must be a whole number, it is "9"', None)),
        ({**BRIDGE, "vlan": 4095}, "network", ("vlan", "must be at most 4094, it is 4095", None)),
        ({**BRIDGE, "ipam": HOST_LOCAL}, "network", ("ipam.subnt", None, "did you mean 'subnet'?")),
        ({"type": "macvlan", "mode": "bridgex"}, "network", ("mode", None, "did you mean 'bridge'?")),
        ({"plugins": [BRIDGE, {}]}, "network", ("plugins[1]", "'type' is missing", None)),
        ({"plugins": []}, "network", ("plugins", "[] has too few items", None)),
        ({**BRIDGE, "type": "../x"}, "network", ("type", '"../x" is not the file name of a plugin', None)),
        ({**BRIDGE, "cniVersion": "0.3.9"}, "network", ("cniVersion", None, "did you mean '0.3.1'?")),
        (3, "network", ("", "must be an object, it is 3", None)),
        ([None], "networks", ("[0]", "must be an object, it is null", None)),
        ([{}], "networks", ("[0]", "'name' is missing", None)),
        ([{"name": "a", "ip": "x"}], "networks", ("[0].ip", None, "did you mean 'ips'?")),
        ([{"name": "a", "ip": "x", "x.ips": 1}], "networks", ("[0].ip", None, "did you mean 'ips'?")),
        ([{"name": "a", "ips": ["10.0.0.1/99"]}], "networks", ("[0].ips[0]", None, "such as 10.1.2.3/24")),
        ([{"name": "a", "interface": "x" * 16}], "networks", ("[0].interface", None, None)),
        ([{"name": "a", "portMappings": [PORT_0]}], "networks", ("[0].portMappings[0].hostPort", None, None)),
        ({"type": "multus-py"}, "config", ("", "needs 'clusterNetwork' or 'delegates'", None)),
        ({**CONFIG, "defaultNetwork": []}, "config", ("defaultNetwork", None, "did you mean 'defaultNetworks'?")),
        ({**CONFIG, "apiDeadline": 0}, "config", ("apiDeadline", "must be more than 0, it is 0", None)),
        ({"type": "x", "delegates": [{**BRIDGE, "bridgex": "b"}]}, "config", ("delegates[0].bridgex", None, None)),
        ({"socketDr": "/x"}, "daemon", ("socketDr", None, "did you mean 'socketDir'?")),
        ({**DEFINITION, "metadata": {"name": "A"}}, "definition", ("metadata.name", None, None)),
    ],
)
def test_a_problem_has_its_place_and_a_fix(
    document: object, schema: str, expected: tuple[str, str | None, str | None]
) -> None:
    """The one problem of the document is found, at its place, with a message and a fix."""
    (found,) = errors(document, schema)
    assert expected == tuple(part if wanted is not None else None for part, wanted in zip(found, expected, strict=True))
    assert found[1]


@pytest.mark.parametrize("key", ["isgateway", "flavour"])
def test_harmless_keys_are_notes(key: str) -> None:
    """A key in another case (which is read) and one like no other (which an executable may read) are not errors."""
    (found,) = problems({**BRIDGE, key: True}, "network")
    assert found.note


def test_each_missing_key_is_reported_once() -> None:
    """Each missing key is one problem."""
    assert ["'apiVersion' is missing", "'metadata' is missing"] == [
        message for _, message, _ in errors({"kind": "NetworkAttachmentDefinition"}, "definition")
    ]


def test_the_custom_resource_accepts_what_the_schema_accepts() -> None:
    """The CRD has the names and the one field of the schema."""
    path = SCHEMAS.parents[2] / "crds/network-attachment-definitions.yaml"
    spec = yaml.safe_load(path.read_text())["spec"]
    assert ("k8s.cni.cncf.io", ["nad", "net-attach-def"]) == (spec["group"], spec["names"]["shortNames"])
    (version,) = spec["versions"]
    ours = json.loads((SCHEMAS / "definition.json").read_text())
    theirs = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert set(ours["properties"]["spec"]["properties"]) == set(theirs)
    assert NETWORKS in version["schema"]["openAPIV3Schema"]["description"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from([*CONFIG, *DAEMON, *ELEMENT, *BRIDGE, "plugins", "ipam", "ranges", "isGatway"])
DOCUMENTS = st.recursive(
    VALUES | st.sampled_from(["bridge", "macvlan", "host-local", "static"]),
    lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(document=DOCUMENTS, schema=st.sampled_from(["networks", "definition", "config", "daemon", "network"]))
def test_any_document_is_validated_without_an_exception(document: object, schema: str) -> None:
    """Of any document only problems with a message are returned."""
    for problem in problems(document, schema):
        assert problem.message
        assert isinstance(problem.where, str)
