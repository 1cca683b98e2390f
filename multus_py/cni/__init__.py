# SPDX-License-Identifier: Apache-2.0
"""The CNI protocol alone: what a runtime asks and a plugin answers. Nothing of ours is imported here."""
