# SPDX-License-Identifier: Apache-2.0
"""The readers of what others write, fuzzed: kubelet's replies, its checkpoint, device information files."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lister import message, pod

from multus_py.cni.errors import CniError
from multus_py.kube import checkpoint, podresources
from multus_py.kube.store import Device, PodRef
from multus_py.plan import device_info

REF = PodRef("default", "p")
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
holdings = st.dictionaries(words, st.dictionaries(words, st.lists(words, max_size=4), max_size=3), max_size=3)


@given(st.lists(st.tuples(words, words, holdings), max_size=4), holdings)
def test_what_was_written_is_read(others, mine):
    """Any pods in any order: ours is found by name and namespace, with each device, its resource and its container."""
    reply = b"".join(
        pod(name, held, namespace) for name, namespace, held in others if (name, namespace) != ("p", "default")
    )
    expected = tuple(
        Device(resource, one, (container,))
        for container, resources in mine.items()
        for resource, ids in resources.items()
        for one in ids
    )
    assert [expected] == podresources.of_pod(reply + pod("p", mine), REF)
    assert [expected] == podresources.of_pod(pod("p", mine) + reply, REF)


@given(st.binary(max_size=200))
def test_only_cni_errors_come_out_of_any_bytes(reply):
    """Fuzz: whatever a socket answers."""
    with suppress(CniError):
        podresources.of_pod(reply, REF)


@given(holdings, st.data())
def test_only_cni_errors_come_out_of_a_damaged_reply(held, data):
    """Fuzz: a real reply with bytes changed or cut off."""
    reply = bytearray(pod("p", held))
    for _ in range(data.draw(st.integers(0, 3))):
        reply[data.draw(st.integers(0, len(reply) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CniError):
        podresources.of_pod(bytes(reply[: data.draw(st.integers(0, len(reply)))]), REF)


@given(st.text(max_size=300), st.text(max_size=300))
def test_a_request_names_the_pod(namespace, name):
    """GetPodResourcesRequest: name is field 1, namespace field 2, whatever their length."""
    names = [text.encode(errors="ignore").decode() for text in (name, namespace)]
    assert message((1, names[0]), (2, names[1])) == podresources.get_request(PodRef(names[1], names[0]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("u"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "-1", "x"]), inner, max_size=3),
    max_leaves=6,
)
entries = st.dictionaries(st.sampled_from(["PodUID", "ContainerName", "ResourceName", "DeviceIDs"]), json_values)


@given(st.binary(max_size=60) | st.lists(entries, max_size=3).map(
    lambda found: json.dumps({"Data": {"PodDeviceEntries": found}}).encode()))  # fmt: skip
def test_only_cni_errors_come_out_of_any_checkpoint(text):
    """Fuzz: bytes, and the right keys with wrong values."""
    with suppress(CniError):
        checkpoint.decode(text, "u")


KEYS = ["type", "version", "pci", "vdpa", "vhost-user", "memif", "pci-address", "path", "mode", "role", "driver",
        "parent-device", "rdma-device"]  # fmt: skip
info_values = st.recursive(
    st.none() | st.integers() | st.sampled_from([*KEYS, "1.1.0", "client", "ip", "master", "vhost", "\0"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=8,
)


@given(st.binary(max_size=60) | info_values.map(lambda body: json.dumps(body).encode()))
def test_only_cni_errors_come_out_of_any_device_information(text):
    """Fuzz: bytes, and the right keys with wrong values."""
    with suppress(CniError):
        device_info.decode(text)


PCI = {"type": "pci", "version": "1.0.0", "pci": {"pci-address": "0000:01:00.1", "rdma-device": "a,b", "new": 1}}
VDPA = {"type": "vdpa", "version": "1.1.0", "vdpa": {"parent-device": "vdpa3", "driver": "vhost", "path": "/dev/v"}}
SOCKET = {"type": "vhost-user", "version": "1.1.0", "vhost-user": {"mode": "server", "path": "/s"}}
MEMIF = {"type": "memif", "version": "1.1.0", "memif": {"role": "slave", "path": "/s", "mode": "punt"}}


@pytest.mark.parametrize("body", [PCI, VDPA, SOCKET, MEMIF], ids=lambda body: body["type"])
def test_every_type_is_read_whole(body):
    """All four types of the specification, with keys that a later version may have added."""
    assert body == device_info.decode(json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        {**PCI, "type": "usb"}, {**PCI, "type": ["pci"]}, {**PCI, "version": "1"}, {**PCI, "version": None},
        {**PCI, "pci": []}, {**PCI, "pci": {}}, {**PCI, "pci": {"pci-address": ""}}, {**PCI, "type": "vdpa"},
        {**PCI, "pci": {"pci-address": "0000:01:00.1", "rdma-device": ["a"]}},
        {**VDPA, "vdpa": {**VDPA["vdpa"], "driver": "vfio"}}, {**VDPA, "vdpa": {"driver": "vhost", "path": "/dev/v"}},
        {**SOCKET, "vhost-user": {"mode": "server"}}, {**MEMIF, "memif": {**MEMIF["memif"], "role": "peer"}},
    ],
)  # fmt: skip
def test_what_the_specification_forbids_is_refused(body):
    """A type without its object, its required keys or a known value is not handed on to the pod."""
    with pytest.raises(CniError):
        device_info.decode(json.dumps(body).encode())
