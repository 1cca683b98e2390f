# SPDX-License-Identifier: Apache-2.0
"""Native delegates, imported as `multus_py.delegates`: a module for each plugin type, `ipam/` for address plugins."""
