# SPDX-License-Identifier: Apache-2.0
"""What we are compared with, one file a peer; a peer whose package is missing says so and is left out."""
