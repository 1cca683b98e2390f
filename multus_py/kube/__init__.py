# SPDX-License-Identifier: Apache-2.0
"""Where pods and network definitions come from, and where statuses and Events go: a store of few verbs."""
