# SPDX-License-Identifier: Apache-2.0
"""Vision -> language: the MultiModal Connectors of VL-Mamba (arXiv:2403.13600, section 3.2) and Cobra's projectors
(arXiv:2403.14520, section 3.1 and table 4; class names there in parentheses)."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.scans import get_scan

# what Cobra's fused projectors widen the encoders' features by
FUSED_EXPANSION = 4


class VisionSelectiveScan(nn.Module):
    """VSS: a 2-D scan through one Mamba layer, results back in patch order and merged.

    The paper does not say how the directions are merged, nor whether one layer serves them all: `average` and `shared`.

    Args:
        hidden_size: width.
        scan: name of the scan: "bidirectional" (the paper's BSM), "cross_scan" (CSM) or any other.
        shared: one parameter set for all directions ("one Mamba layer"); False gives each its own.
        average: mean instead of sum over the directions.
        state_size, conv_kernel, expand: sizes of the Mamba layer.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: str = "bidirectional",
        shared: bool = True,
        average: bool = False,
        state_size: int = 16,
        conv_kernel: int = 4,
        expand: int = 2,
        **_: object,
    ):
        super().__init__()
        self.scan = scan
        self.mixer = VisionMixer(
            hidden_size,
            get_scan(scan).num_paths,
            state_size=state_size,
            conv_kernel=conv_kernel,
            expand=expand,
            shared="all" if shared else "none",
            merge="mean" if average else "sum",
        )

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`[B, h * w, hidden_size]` patches of a `grid` = (h, w) -> the same shape."""
        return self.mixer(features, get_scan(self.scan).paths(*grid, device=features.device))


class LinearConnector(nn.Module):
    """One linear layer (LinearProjector). `forward(features [B, L, in], grid) -> [B, L, out]`."""

    def __init__(self, in_features: int, out_features: int, **_: object):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        return self.linear(features)


class MLPConnector(nn.Module):
    """Linear -> activation -> Linear (MLPProjector). `forward(features [B, L, in], grid) -> [B, L, out]`."""

    def __init__(self, in_features: int, out_features: int, hidden_act: str = "gelu", **_: object):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, features: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features)))


class FusedMLPConnector(nn.Module):
    """Linear to four times the width -> activation -> Linear -> activation -> Linear (FusedMLPProjector).

    For the features of several encoders side by side. `forward(features [B, L, in], grid) -> [B, L, out]`.
    """

    def __init__(self, in_features: int, out_features: int, hidden_act: str = "gelu", **_: object):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, FUSED_EXPANSION * in_features)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(FUSED_EXPANSION * in_features, out_features)
        self.linear_3 = nn.Linear(out_features, out_features)

    def forward(self, features: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        return self.linear_3(self.act(self.linear_2(self.act(self.linear_1(features)))))


class LDPConnector(nn.Module):
    """Linear -> activation -> Linear, patches averaged to a small grid, plus a depthwise 3 x 3 convolution of it.

    The lightweight downsample projector of MobileVLM V2 (arXiv:2402.03766), as Cobra has it (LDPProjector).
    `forward(features [B, h * w, in], grid) -> [B, pool_size ** 2, out]`.

    Args:
        in_features, out_features: widths.
        pool_size: rows and columns that are left of any grid, also of a smaller one.
        hidden_features: width between the linear layers; `out_features` when None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_act: str = "gelu",
        pool_size: int = 14,
        hidden_features: int | None = None,
        **_: object,
    ):
        super().__init__()
        hidden_features = hidden_features or out_features
        self.linear_1 = nn.Linear(in_features, hidden_features)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(hidden_features, out_features)
        self.pool = nn.AdaptiveAvgPool2d(pool_size)
        self.position = nn.Conv2d(out_features, out_features, 3, padding=1, groups=out_features)

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        # no activation before the pool
        features = self.linear_2(self.act(self.linear_1(features)))
        pooled = self.pool(features.transpose(1, 2).unflatten(2, grid))  # [B, out, pool_size, pool_size]
        return (self.position(pooled) + pooled).flatten(2).transpose(1, 2)


class FusedLDPConnector(LDPConnector):
    """`LDPConnector` with four times the encoders' width between its linear layers (FusedLDPProjector)."""

    def __init__(self, in_features: int, out_features: int, **options: object):
        super().__init__(in_features, out_features, hidden_features=FUSED_EXPANSION * in_features, **options)


class VSSMLPConnector(nn.Module):
    """MLP(norm(V + VSS(V))): the scan at the encoder's width, then a two-layer MLP."""

    def __init__(self, in_features: int, out_features: int, hidden_act: str = "gelu", eps: float = 1e-5, **vss: object):
        super().__init__()
        self.vss = VisionSelectiveScan(in_features, **vss)
        self.norm = nn.LayerNorm(in_features, eps=eps)
        self.mlp = MLPConnector(in_features, out_features, hidden_act)

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.mlp(self.norm(features + self.vss(features, grid)))


class VSSL2Connector(nn.Module):
    """V2 = Linear(V); Linear(norm(VSS(act(V2)) + V2)): the paper's final choice; the skip leaves before the act.

    The kind of the norm, its epsilon and the width between are not in the paper: a LayerNorm at the language model's.
    """

    def __init__(self, in_features: int, out_features: int, hidden_act: str = "gelu", eps: float = 1e-5, **vss: object):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.act = ACT2FN[hidden_act]
        self.vss = VisionSelectiveScan(out_features, **vss)
        self.norm = nn.LayerNorm(out_features, eps=eps)
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        features = self.linear_1(features)
        return self.linear_2(self.norm(self.vss(self.act(features), grid) + features))


CONNECTORS: dict[str, type[nn.Module]] = {
    "linear": LinearConnector,
    "mlp": MLPConnector,
    "fused_mlp": FusedMLPConnector,
    "ldp": LDPConnector,
    "fused_ldp": FusedLDPConnector,
    "vss_mlp": VSSMLPConnector,
    "vss_l2": VSSL2Connector,
}
