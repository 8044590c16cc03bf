# SPDX-License-Identifier: Apache-2.0
"""The `vlmamba` command: one file per subcommand, nothing heavy imported before a subcommand runs."""
