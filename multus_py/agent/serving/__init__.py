# SPDX-License-Identifier: Apache-2.0
"""Answers calls: the socket, the service behind it, metrics. Nothing here attaches a network itself."""
