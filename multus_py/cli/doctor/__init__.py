# SPDX-License-Identifier: Apache-2.0
"""`multus-py doctor`: a module for each area that it examines. Nothing here changes the node."""
