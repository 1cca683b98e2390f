# SPDX-License-Identifier: Apache-2.0
"""The interface to this machine: netlink, namespaces, sysfs, small files, rollback. No CNI network and no pod here."""
