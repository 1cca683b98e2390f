# SPDX-License-Identifier: Apache-2.0
"""State on disk of sandboxes: journal, cached results, spool, delegates files. Nothing here runs a plugin."""
