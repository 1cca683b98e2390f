# SPDX-License-Identifier: Apache-2.0
"""Installation on a node: the CNI folders, our config file, our executable. Nothing here runs when a pod starts."""
