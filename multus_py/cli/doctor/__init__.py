# SPDX-License-Identifier: Apache-2.0
"""What `multus-py doctor` looks at, a file for each area. Nothing here changes the node.

`place.py` where things are, `software.py`, `folders.py`, `kernel.py`, `services.py`, `leftovers.py` yield findings.
"""
