# SPDX-License-Identifier: Apache-2.0
"""The model families, one folder each: configuration, modeling, conversion of official checkpoints."""
