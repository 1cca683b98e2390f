# SPDX-License-Identifier: Apache-2.0
"""`multus-py lab`: pods on this machine without a cluster.

Only namespaces and folders of the lab itself are changed.
"""
