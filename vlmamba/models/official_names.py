# SPDX-License-Identifier: Apache-2.0
"""Official names to ours, by tables of patterns."""

import re
from collections.abc import Callable, Sequence

Target = str | Callable[[re.Match], str]


def matched(key: str, patterns: Sequence[tuple[str, Target]]) -> str:
    """What the first pattern that is found makes of a key; the key itself where none is."""
    for pattern, target in patterns:
        new, found = re.subn(pattern, target, key)
        if found:
            return new
    return key
