# SPDX-License-Identifier: Apache-2.0
"""The node itself: our CNI config file in front of the default network's, the client certificate. No sandbox here."""
