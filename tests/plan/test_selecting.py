# SPDX-License-Identifier: Apache-2.0
"""How a pod says which device it means: the keys of a network element, read and linted alike."""

import json

import pytest

from multus_py.config import selection, validate
from multus_py.config.selection import SelectionError

GOOD = [
    ({"container": "app"}, ("app", "", "")),
    ({"claim": "vfs"}, ("", "vfs", "")),
    ({"claim": "p-vfs.x1/fast"}, ("", "p-vfs.x1/fast", "")),
    ({"resourceName": "intel.com/sriov_net-A.1"}, ("", "", "intel.com/sriov_net-A.1")),
    ({"RESOURCENAME": "a/b"}, ("", "", "a/b")),
    ({"container": "", "claim": "", "resourceName": ""}, ("", "", "")),
]
BAD = [
    ("container", "App"), ("container", "a/b"), ("container", 5), ("claim", "/r"), ("claim", "a/"), ("claim", "a/b/c"),
    ("claim", "../a"), ("claim", []), ("resourceName", "vf"), ("resourceName", "intel.com/"), ("resourceName", "a/b/c"),
    ("resourceName", "Intel.com/vf"), ("resourceName", "intel.com/..vf"), ("resourceName", {}),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "expected"), GOOD)
def test_what_says_which_device_is_read(keys, expected):
    """The three keys reach the selection as they are written; empty is absent, and case does not matter."""
    element = {"name": "n", **keys}
    (found,) = selection.parse(json.dumps([element]), "ns")
    assert expected == (found.container, found.claim, found.resource)
    assert [] == [problem for problem in validate.problems([element], "networks") if not problem.note]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_what_cannot_be_meant_is_refused_at_its_place(key, value):
    """The plan points at the character, and lint finds it without a cluster."""
    element = {"name": "n", key: value}
    text = json.dumps([element])
    with pytest.raises(SelectionError) as caught:
        selection.parse(text, "ns")
    assert text.index(json.dumps(value), text.index(key)) == caught.value.offset
    assert [(0, key)] == [problem.path for problem in validate.problems([element], "networks")]
