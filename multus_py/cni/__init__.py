# SPDX-License-Identifier: Apache-2.0
"""The CNI protocol: calls, conflists, results, errors, executables, the contract of a delegate.

No other room is imported.
"""
