# SPDX-License-Identifier: Apache-2.0
"""The processes, a module each: environment, clock and files are read here.

No decision about networks is made here.
"""
