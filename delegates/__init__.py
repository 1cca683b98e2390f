# SPDX-License-Identifier: Apache-2.0
"""Native delegates, imported as `multus_py.delegates`: one module for each plugin type, `ipam/` those that give addresses."""
