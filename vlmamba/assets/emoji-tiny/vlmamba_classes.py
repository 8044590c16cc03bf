# SPDX-License-Identifier: Apache-2.0
"""The classes of this folder, for trust_remote_code=True; they are in the package vlmamba, which must be installed."""

import vlmamba


def __getattr__(name):
    return getattr(vlmamba, name)
