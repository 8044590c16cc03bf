# SPDX-License-Identifier: Apache-2.0
"""How what several scan orders gave for the same rows becomes one: `[B, K, L, D]` -> `[B, L, D]`.

The sum (of which stitching disjoint orders is a case) and the mean need no module: the kernel adds the orders up.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

MERGES = ("sum", "mean", "channel_gate", "softmax", "variation_gate")


class ChannelGate(nn.Module):
    """x * sigmoid(W2 gelu(W1 mean over rows(norm(x)))): LocalMamba's and EfficientVMamba's BiAttn.

    Args:
        channels: D.
        reduction: inner width over D.
        eps: of the norm.
    """

    def __init__(self, channels: int, reduction: float = 0.125, eps: float = 1e-5):
        super().__init__()
        inner = int(channels * reduction)
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.reduce = nn.Linear(channels, inner)
        self.expand = nn.Linear(inner, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., L, D]` -> the same shape."""
        return x * self.expand(F.gelu(self.reduce(self.norm(x).mean(-2, keepdim=True)))).sigmoid()


class ChannelGatedSum(nn.Module):
    """Every order through one `ChannelGate`, then the sum (LocalMamba, arXiv:2403.09338)."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.gate = ChannelGate(channels, eps=eps)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.gate(y).sum(1)


class SoftmaxSum(nn.Module):
    """Gated and normed orders, weighted by a learned softmax: LocalMamba's search for the best orders.

    `weights` `[K]` are the logits; the largest name the orders to keep.
    """

    def __init__(self, channels: int, num_paths: int, eps: float = 1e-5):
        super().__init__()
        self.gate = ChannelGate(channels, eps=eps)
        self.weights = nn.Parameter(torch.empty(num_paths))
        self.eps = eps

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        shares = self.weights.softmax(0).to(y.dtype)
        y = F.layer_norm(self.gate(y), y.shape[-1:], eps=self.eps)
        return torch.einsum("bkld,k->bld", y, shares)


class VariationGatedSum(nn.Module):
    """The sum, scaled by how much the orders disagree: relu(std / mean(y - min) - threshold).

    The self-selective fusion of MHS-VM (arXiv:2406.05992).
    Spread, mean and minimum are over the K orders, for every row and channel.
    """

    def __init__(self, threshold: float = 0.0):
        super().__init__()
        self.threshold = threshold

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        above = (y - y.amin(1, keepdim=True)).mean(1)
        variation = y.std(1, correction=0) / (above + 1e-5)
        return y.sum(1) * F.relu(variation - self.threshold)


def make_merge(kind: str, channels: int, num_paths: int, eps: float = 1e-5) -> nn.Module | None:
    """The module of a merge of `MERGES`; None for those that the kernel does.

    Raises:
        ValueError: an unknown merge.
    """
    if kind not in MERGES:
        raise ValueError(f"merge is {kind!r}, expected one of {', '.join(MERGES)}")
    if kind == "channel_gate":
        return ChannelGatedSum(channels, eps)
    if kind == "softmax":
        return SoftmaxSum(channels, num_paths, eps)
    return VariationGatedSum() if kind == "variation_gate" else None


@torch.no_grad()
def reset_merge(merge: nn.Module | None, std: float = 0.02) -> None:
    """The published initialisation of a merge's own parameters: orders begin with nearly equal shares."""
    if isinstance(merge, SoftmaxSum):
        init.normal_(merge.weights, std=1e-3)
    if merge is not None and hasattr(merge, "gate"):
        for linear in (merge.gate.reduce, merge.gate.expand):
            init.trunc_normal_(linear.weight, std=std)
            init.zeros_(linear.bias)
