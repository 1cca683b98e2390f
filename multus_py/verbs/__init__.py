# SPDX-License-Identifier: Apache-2.0
"""What happens on ADD, CHECK, DEL, STATUS and GC, and what they share. Nothing here knows who called."""
