# SPDX-License-Identifier: Apache-2.0
"""The orders among which LocalMamba (arXiv:2403.09338) searches, and orders of a grid as orders of tokens."""

from dataclasses import replace

import numpy as np

from vlmamba.scans.base import Scan, constant, orders, padded

# in the order of the official search
LOCAL_SCANS = (
    "raster",
    "raster_reversed",
    "column",
    "column_reversed",
    "local_w2",
    "local_w2_flip",
    "local_w7",
    "local_w7_flip",
)
# read in every layer where nothing was searched
UNSEARCHED = ("raster", "raster_reversed", "local_w2", "local_w2_flip")


_made: dict[tuple[str, bool], Scan] = {}


def over_tokens(scan: Scan, class_token: bool = False) -> Scan:
    """The orders of a grid as orders of L tokens, with rows for the padded steps.

    LocalVim pads the grid with zeros to whole windows, and convolves and scans these steps like others. So padded steps
    become rows L, L + 1, ... here, in every order anew: a table of T steps needs T - L rows of zeros after the tokens.

    Args:
        scan: of kind "grid", known by its name.
        class_token: a token stands in the middle of the M patches, in row M // 2, and is read at step M // 2.

    Raises:
        ValueError: the scan is of another kind.
    """
    key = (scan.name, class_token)  # of strings, which torch.compile looks up
    if key not in _made:
        if scan.kind != "grid":
            raise ValueError(f"over_tokens: scan {scan.name!r} is of kind {scan.kind!r}, expected 'grid'")
        _made[key] = replace(
            scan,
            name=f"{scan.name} over tokens" + " with a class token" * class_token,
            build=constant(lambda h, w: padded([_read(patches, h * w, class_token) for patches in orders(scan, h, w)])),
            kind="tokens",
            extra_tokens=int(class_token),
        )
    return _made[key]


def _read(patches: np.ndarray, count: int, class_token: bool) -> np.ndarray:
    """An order of `count` patches, with -1 at padded steps, as one of tokens."""
    middle, empty = count // 2, patches < 0
    read = patches + (class_token & (patches >= middle))
    read[empty] = count + class_token + np.arange(empty.sum())
    return np.insert(read, middle, middle) if class_token else read
