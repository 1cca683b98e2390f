# SPDX-License-Identifier: Apache-2.0
"""Native delegates that give addresses and touch no interface."""
