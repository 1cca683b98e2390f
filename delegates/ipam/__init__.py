# SPDX-License-Identifier: Apache-2.0
"""Native IPAM delegates: addresses. No interface is touched here."""
