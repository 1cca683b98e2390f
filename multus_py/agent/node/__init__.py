# SPDX-License-Identifier: Apache-2.0
"""What the daemon keeps in order on its node: our conf in front of the default network's, the node's certificate."""
