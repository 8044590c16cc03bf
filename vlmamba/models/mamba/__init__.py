# SPDX-License-Identifier: Apache-2.0
"""The Mamba language model: transformers' classes on our kernel (`vlmamba.layers.mamba`)."""
