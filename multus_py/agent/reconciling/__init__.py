# SPDX-License-Identifier: Apache-2.0
"""Brings sandboxes to the desired state: spool replay, removed sandboxes, hot plug, edited annotations.

No socket here.
"""
