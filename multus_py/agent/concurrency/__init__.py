# SPDX-License-Identifier: Apache-2.0
"""How many calls are in progress at once, and in which processes. Nothing here knows what a call is about."""
