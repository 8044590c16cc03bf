# SPDX-License-Identifier: Apache-2.0
"""The modules that models are made of; none of them knows a config or a checkpoint."""
