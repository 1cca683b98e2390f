# SPDX-License-Identifier: Apache-2.0
"""The handler of each CNI verb (CNI spec 1.1.0, section 2); VERSION is answered before a config is read."""

from collections.abc import Callable
from typing import Any

from multus_py.cni.call import Call
from multus_py.verbs.add import add
from multus_py.verbs.check import check
from multus_py.verbs.delete import delete
from multus_py.verbs.gc import gc
from multus_py.verbs.node import Node
from multus_py.verbs.status import status

HANDLERS: dict[str, Callable[[Call, Node], dict[str, Any] | None]] = {
    "ADD": add,
    "CHECK": check,
    "DEL": delete,
    "STATUS": status,
    "GC": gc,
}
