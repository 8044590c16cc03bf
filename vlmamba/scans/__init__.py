# SPDX-License-Identifier: Apache-2.0
"""Scan orders by name: `get_scan("cross_scan").paths(14, 14)` is the table that the kernel reads."""

from vlmamba.scans.base import Scan
from vlmamba.scans.raster import (
    BIDIRECTIONAL,
    CROSS_SCAN,
    CROSS_SCAN_BIDI,
    CROSS_SCAN_ROT90,
    CROSS_SCAN_UNIDI,
    RASTER,
)

__all__ = ["Scan", "get_scan", "list_scans", "register_scan"]

_REGISTRY: dict[str, Scan] = {}


def register_scan(scan: Scan) -> Scan:
    """Make a scan known by its name.

    Raises:
        ValueError: the name is taken.
    """
    if scan.name in _REGISTRY:
        raise ValueError(f"register_scan: a scan named {scan.name!r} is registered already")
    _REGISTRY[scan.name] = scan
    return scan


def get_scan(name: str) -> Scan:
    """The scan registered under `name`.

    Raises:
        ValueError: no scan has this name; the message lists those there are.
    """
    if name not in _REGISTRY:
        raise ValueError(f"get_scan: unknown scan {name!r}; expected one of {', '.join(list_scans())}")
    return _REGISTRY[name]


def list_scans() -> list[str]:
    """The registered names, sorted."""
    return sorted(_REGISTRY)


for _scan in (RASTER, BIDIRECTIONAL, CROSS_SCAN, CROSS_SCAN_UNIDI, CROSS_SCAN_BIDI, CROSS_SCAN_ROT90):
    register_scan(_scan)
