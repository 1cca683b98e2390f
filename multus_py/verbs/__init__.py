# SPDX-License-Identifier: Apache-2.0
"""The handlers of ADD, CHECK, DEL, STATUS and GC, and what they share. Nothing here depends on the caller."""
