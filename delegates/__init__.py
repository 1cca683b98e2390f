# SPDX-License-Identifier: Apache-2.0
"""Native delegates, a module for each plugin type, imported as `multus_py.delegates`. No pod and no store here."""
