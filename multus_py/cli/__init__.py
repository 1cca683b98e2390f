# SPDX-License-Identifier: Apache-2.0
"""Commands for people: one module a command, each with `add_parser(commands)` and `run(args)`."""
