# SPDX-License-Identifier: Apache-2.0
"""Decides what a pod gets: finds networks, chooses devices, refuses what is not allowed. Nothing here writes."""
