# SPDX-License-Identifier: Apache-2.0
"""Pods, definitions and devices from Kubernetes, statuses and Events to it: stores behind one protocol.

No CNI call here.
"""
