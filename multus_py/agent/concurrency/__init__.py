# SPDX-License-Identifier: Apache-2.0
"""How many calls are worked on at once, and in which processes."""
