# SPDX-License-Identifier: Apache-2.0
"""Speed and memory against peers, run in the same process: `python -m benchmarks --help`."""
