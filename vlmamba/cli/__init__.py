# SPDX-License-Identifier: Apache-2.0
"""The `vlmamba` command: one file per subcommand."""
