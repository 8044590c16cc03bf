# SPDX-License-Identifier: Apache-2.0
"""Blocks that read two images of one scene together."""
