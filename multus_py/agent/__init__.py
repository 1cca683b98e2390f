# SPDX-License-Identifier: Apache-2.0
"""The parts of the node daemon, in four groups.

Nothing here parses arguments or decides when the process starts and ends.
"""
