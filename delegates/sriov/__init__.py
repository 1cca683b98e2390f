# SPDX-License-Identifier: Apache-2.0
"""The native delegate `sriov`: virtual functions of a NIC as pod interfaces.

What is not about SR-IOV stays outside.
"""

from multus_py.delegates.sriov.delegate import SCHEMA, add, check, delete, parse, status

__all__ = ["SCHEMA", "add", "check", "delete", "parse", "status"]
