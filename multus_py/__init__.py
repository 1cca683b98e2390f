# SPDX-License-Identifier: Apache-2.0
"""A meta-CNI: one pod, several network interfaces."""
