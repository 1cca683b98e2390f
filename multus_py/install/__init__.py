# SPDX-License-Identifier: Apache-2.0
"""A node's two CNI folders: what others put there, and what we put in front of it."""
