# SPDX-License-Identifier: Apache-2.0
"""What LocalVim and LocalVMamba share (arXiv:2403.09338): orders chosen for every layer, and the search for them."""

import copy
import re
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict

from vlmamba.layers.scan_search import best_orders, keep_orders, order_names, order_shares, searched_mixers
from vlmamba.models.vision_config import VisionEncoderConfig
from vlmamba.scans import get_scan
from vlmamba.scans.local import LOCAL_SCANS, UNSEARCHED

# LocalMamba's names -> ours; those of windows have a number
_LINES = {"h": "raster", "h_flip": "raster_reversed", "v": "column", "v_flip": "column_reversed"}


def searched(table: str) -> tuple[tuple[str, ...], ...]:
    """A published table of directions: a word for every layer, a digit for each of `LOCAL_SCANS` that it reads."""
    return tuple(tuple(LOCAL_SCANS[int(digit)] for digit in layer) for layer in table.split())


@strict
class LocalScansConfig(VisionEncoderConfig):
    r"""The part of a config that says which orders every layer reads.

    Args:
        directions: for every layer the names of its scans, which must visit every position once. None is, for every
            layer, rows and windows of 2 x 2 and their reverses, or, to search, `vlmamba.scans.local.LOCAL_SCANS`.
        merge: "channel_gate" sums gated orders, "softmax" weighs them: the search, see `keep_best_directions`.
    """

    directions: list | tuple | None = None
    merge: Literal["channel_gate", "softmax"] = "channel_gate"

    def __post_init__(self, **kwargs):
        if self.directions is None:
            names = LOCAL_SCANS if self.merge == "softmax" else UNSEARCHED
            self.directions = [list(names) for _ in range(self.num_layers)]
        else:
            self.directions = [[layer] if isinstance(layer, str) else list(layer) for layer in self.directions]
        super().__post_init__(**kwargs)

    @property
    def num_layers(self) -> int:
        """Mixers, each with orders of its own."""
        raise NotImplementedError

    def validate_directions(self):
        """Part of the validation of strict configs: every layer has orders, which are known and visit all positions."""
        if len(self.directions) != self.num_layers:
            raise ValueError(f"directions has {len(self.directions)} layers, expected {self.num_layers}")
        for i, layer in enumerate(self.directions):
            if not layer:
                raise ValueError(f"directions[{i}] is empty, expected at least one scan")
            if (kind := get_scan(layer).kind) != "grid":
                raise ValueError(f"directions[{i}] is {layer!r}, of kind {kind!r}; expected scans of kind 'grid'")


class ScanSearch:
    """Mixed into models whose layers may weigh their orders by a softmax."""

    def keep_best_directions(self, count: int = 4) -> Self:
        """The end of a search: of a model trained with merge "softmax", one whose layers read their best orders alone.

        Args:
            count: orders that each layer keeps: those of the largest weights, in their old order.

        Returns:
            A new model of the same class. Its `config.directions` is what was found; it has all weights but those of
            the orders that were dropped. Its outputs are others, as orders are summed and no longer normed and
            weighed: train it, or, as the published models were, a larger one with these directions from scratch.

        Raises:
            ValueError: the model searches nothing, or `count` is no number of a layer's orders.
        """
        if self.config.merge != "softmax":
            raise ValueError(f"merge is {self.config.merge!r}, expected a model that searches, with 'softmax'")
        kept = [best_orders(shares, count) for shares in order_shares(self)]
        found = copy.deepcopy(self)
        for mixer, orders in zip(searched_mixers(found), kept, strict=True):
            keep_orders(mixer, orders)
        names = [order_names(layer) for layer in self.config.directions]
        found.config.directions = [[layer[k] for k in orders] for layer, orders in zip(names, kept, strict=True)]
        found.config.merge = "channel_gate"
        return found


def directions_from_official(family: str, directions: Any, count: int) -> dict[str, Any]:
    """The config's fields for LocalMamba's `directions`: for each of `count` layers names as "h", "v_flip" or "w7".

    Raises:
        ValueError: there are too few layers, or a name is unknown.
    """
    if directions is None:
        return {"merge": "softmax"}
    directions = list(directions)
    if len(directions) < count:
        raise ValueError(f"{family}: directions has {len(directions)} layers, expected {count}")
    return {"directions": [_layer(family, i, layer) for i, layer in enumerate(directions[:count])]}


def _layer(family: str, index: int, names: Any) -> list[str]:
    if not isinstance(names, list | tuple):
        raise ValueError(f"{family}: directions[{index}] is {names!r}, expected a list of names")
    return [_name(family, index, name) for name in names]


def _name(family: str, index: int, name: Any) -> str:
    if name in _LINES:
        return _LINES[name]
    if match := re.fullmatch(r"w([1-9]\d{0,3})(_flip)?", str(name)):
        return f"local_w{match[1]}{match[2] or ''}"
    raise ValueError(f"{family}: directions[{index}] has {name!r}, expected {', '.join(_LINES)}, or wK, wK_flip")
