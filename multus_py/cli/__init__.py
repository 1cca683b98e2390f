# SPDX-License-Identifier: Apache-2.0
"""The commands, a module or a package each with `add_parser(commands)` and `run(args)`. Nothing imports from here."""
