# SPDX-License-Identifier: Apache-2.0
"""LocalMamba's search (arXiv:2403.09338): all orders are trained, weighed by a softmax, and the best are kept."""

import torch
from torch import nn

from vlmamba.layers.map_scan import MapScan
from vlmamba.layers.merging import ChannelGatedSum, SoftmaxSum
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.scans import get_scan

Searched = VisionMixer | MapScan


def searched_mixers(model: nn.Module) -> list[Searched]:
    """The mixers that weigh their orders by a softmax, in the order of the blocks."""
    return [m for m in model.modules() if isinstance(m, Searched) and isinstance(m.merge, SoftmaxSum)]


def order_shares(model: nn.Module) -> list[torch.Tensor]:
    """What each order counts in each of these mixers: float32 `[K]`, summing to 1."""
    return [mixer.merge.weights.detach().float().softmax(0) for mixer in searched_mixers(model)]


def best_orders(shares: torch.Tensor, count: int) -> list[int]:
    """The `count` orders of the largest shares `[K]`, ascending.

    Raises:
        ValueError: there are fewer orders, or none shall be kept.
    """
    if not 1 <= count <= len(shares):
        raise ValueError(f"count is {count}, expected 1 to {len(shares)}, the orders of a layer")
    return sorted(shares.topk(count).indices.tolist())


@torch.no_grad()
def keep_orders(mixer: Searched, kept: list[int]) -> None:
    """Drop all orders but these, with their parameters; what is left is gated and summed, no longer weighed."""
    if isinstance(mixer, VisionMixer):
        mixer.directions = nn.ModuleList(mixer.directions[k] for k in kept)
        mixer.num_paths = len(kept)
    else:
        x_proj = mixer.x_proj
        rows = x_proj.weight.unflatten(0, (len(mixer.dt_projs), -1))[kept].flatten(0, 1)
        x_proj.weight, x_proj.out_features = nn.Parameter(rows), len(rows)
        mixer.dt_projs = nn.ModuleList(mixer.dt_projs[k] for k in kept)
        mixer.A_log, mixer.D = nn.Parameter(mixer.A_log[kept]), nn.Parameter(mixer.D[kept])
        names = order_names(mixer.scan)
        mixer.scan = [names[k] for k in kept]
    gate = mixer.merge.gate
    mixer.merge = ChannelGatedSum(gate.expand.out_features)
    mixer.merge.gate = gate


def order_names(scan: str | list[str] | tuple[str, ...]) -> list[str]:
    """A name for each order of a scan, or of several that are combined: "zigma8[3]" is one of eight."""
    names = []
    for name in "+".join([scan] if isinstance(scan, str) else scan).split("+"):
        count = get_scan(name).num_paths
        names += [name] if count == 1 else [f"{name}[{k}]" for k in range(count)]
    return names
