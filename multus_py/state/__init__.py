# SPDX-License-Identifier: Apache-2.0
"""What is on disk of a sandbox: journal, kept results, spool, delegates files. Nothing here calls a plugin."""
