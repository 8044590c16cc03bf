# SPDX-License-Identifier: Apache-2.0
"""Scan orders by name: `get_scan("cross_scan").paths(14, 14)` is the table that the kernel reads."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import chain

from vlmamba.scans import diagonals, hilbert, raster, snakes, spirals, tokens, video, windows
from vlmamba.scans.base import KINDS, Scan, combined
from vlmamba.scans.neighbours import Locality, locality
from vlmamba.scans.tokens import registers
from vlmamba.scans.windows import atrous, local_windows

__all__ = [
    "KINDS",
    "Locality",
    "Scan",
    "atrous",
    "get_scan",
    "list_scans",
    "local_windows",
    "locality",
    "register_scan",
    "registers",
]

_REGISTRY: dict[str, Scan] = {}
_made: dict[str | tuple[str | Scan, ...], Scan] = {}


def register_scan(scan: Scan) -> Scan:
    """Make a scan known by its name.

    Raises:
        ValueError: the name is taken, or reads as one of several scans ("a+b") or of an order ("a[0]").
    """
    if scan.name in _REGISTRY:
        raise ValueError(f"register_scan: a scan named {scan.name!r} is registered already")
    if not scan.name or set("+[]") & set(scan.name):
        raise ValueError(f"register_scan: the name is {scan.name!r}, expected one without +, [ and ]")
    _REGISTRY[scan.name] = scan
    return scan


def get_scan(name: str | Scan | Sequence[str | Scan]) -> Scan:
    """The scan of a name, or the combination of several; the same object every time.

    A function under `torch.compile` finds what was made before, but cannot make it: ask first where a layer is made.

    Args:
        name: a registered name ("raster"), the name of windows, skips or registers of any size ("local_w5",
            "atrous_step3"), one order of a scan ("zigma8[3]"), several scans ("raster+local_w2") or a sequence of
            these or of `Scan`s: then all orders of all of them, padded to the longest.

    Raises:
        ValueError: no scan has this name (the message suggests the nearest and lists those there are), or the scans
            are for different kinds of grids.
    """
    if isinstance(name, Scan):
        return name
    if isinstance(name, str) and name in _REGISTRY:
        return _REGISTRY[name]
    if not isinstance(name, (str, list, tuple)) or not all(isinstance(part, (str, Scan)) for part in name):
        raise ValueError(f"get_scan: name is {name!r}, expected a name or a sequence of names")
    key = name if isinstance(name, str) else tuple(name)
    if key not in _made:
        _made[key] = _named(key) if isinstance(key, str) else _together(key)
    return _made[key]


def list_scans(kind: str | None = None) -> list[str]:
    """The registered names, sorted; of one kind only, if one of `KINDS` is given.

    Raises:
        ValueError: there is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"list_scans: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    return sorted(name for name, scan in _REGISTRY.items() if kind in (None, scan.kind))


def _together(scans: tuple[str | Scan, ...]) -> Scan:
    if not scans:
        raise ValueError("get_scan: the sequence of names is empty, expected at least one")
    scans = tuple(get_scan(scan) for scan in scans)
    return scans[0] if len(scans) == 1 else combined(scans, "+".join(scan.name for scan in scans))


def _named(name: str) -> Scan:
    if "+" in name:
        return get_scan(name.split("+"))
    if match := re.fullmatch(r"(.+)\[(\d{1,6})\]", name):
        return get_scan(match[1]).only(int(match[2]))
    if match := re.fullmatch(r"local_w([1-9]\d{0,3})((?:_flip|_column_first|_nopad)*)", name):
        return local_windows(
            int(match[1]),
            flip="_flip" in match[2],
            column_first="_column_first" in match[2],
            pad="_nopad" not in match[2],
        )
    if match := re.fullmatch(r"atrous_step([1-9]\d{0,3})", name):
        return atrous(int(match[1]))
    if match := re.fullmatch(r"registers_([1-9]\d{0,3})", name):
        return registers(int(match[1]))
    near = get_close_matches(name, _REGISTRY, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"get_scan: unknown scan {name!r}{hint}; expected one of {', '.join(list_scans())}")


for _scan in chain.from_iterable(
    theme.SCANS for theme in (raster, snakes, diagonals, spirals, hilbert, windows, tokens, video)
):
    register_scan(_scan)
