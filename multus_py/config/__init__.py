# SPDX-License-Identifier: Apache-2.0
"""What people write: each config key is declared once, for the parser, the schema and the reference.

No network is found here.
"""
