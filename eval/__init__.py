# SPDX-License-Identifier: Apache-2.0
"""Runnable benchmark scripts."""
