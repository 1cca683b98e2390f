# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the delegates' tests: a host and a pod made of namespaces."""

from namespaces import _host, _place, _pod  # noqa: F401  pytest finds fixtures by import
