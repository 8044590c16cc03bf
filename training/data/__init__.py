# SPDX-License-Identifier: Apache-2.0
"""The data the small bundled models are trained on: drawings, scenes of them, questions about them."""
