# SPDX-License-Identifier: Apache-2.0
"""This machine: netlink, sysfs, small files, the undo list. Nothing here knows of CNI networks or Kubernetes."""
