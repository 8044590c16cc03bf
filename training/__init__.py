# SPDX-License-Identifier: Apache-2.0
"""Training scripts, to be read and run: `python -m training.train_vlm --help`."""
