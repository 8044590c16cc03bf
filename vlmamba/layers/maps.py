# SPDX-License-Identifier: Apache-2.0
"""Parts of encoders in stages. Maps are channel-last, `[B, h, w, D]`."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that counts a batch once, though gradient checkpointing runs it twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            # within a backward pass: the batch is in the running statistics already
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(x)


class MapBatchNorm(nn.Module):
    """Batch norm of a channel-last map.

    It holds the norm, and is none: what exchanges batch norms (for frozen ones, as DETR does, or synchronised ones)
    finds one that reads maps as they expect.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.batch_norm = BatchNorm(channels, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolved(self.batch_norm, x)


class NormedConvolution(nn.Module):
    """A strided convolution of a channel-last map, and a norm."""

    def __init__(
        self, inputs: int, outputs: int, side: int, step: int, padding: int, norm: nn.Module, bias: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, step, padding, bias=bias)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(convolved(self.conv, x))


class PatchMerging(nn.Module):
    """Every 2 x 2 positions to one of `outputs` channels; odd sides get a row or column of zeros.

    Args:
        norm: of `4 * inputs` channels.
    """

    def __init__(self, inputs: int, outputs: int, norm: nn.Module):
        super().__init__()
        self.norm = norm
        self.reduction = nn.Linear(4 * inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class MLP(nn.Module):
    """fc2(act(fc1(x))), or gated: fc2(a * act(b)) with a, b of one projection."""

    def __init__(self, channels: int, ratio: float, act: str = "gelu", gated: bool = False, dropout: float = 0.0):
        super().__init__()
        inner = int(channels * ratio)
        self.gated = gated
        self.fc1 = nn.Linear(channels, 2 * inner if gated else inner)
        self.act = ACT2FN[act]
        self.fc2 = nn.Linear(inner, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            return self.dropout(self.fc2(self.dropout(x * self.act(gate))))
        return self.dropout(self.fc2(self.dropout(self.act(x))))


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 relu(W1 mean over the map(x))) (arXiv:1709.01507).

    Args:
        channels: D.
        inner: width between the two layers.
        bias: whether they have one.
    """

    def __init__(self, channels: int, inner: int, bias: bool = True):
        super().__init__()
        self.reduce = nn.Linear(channels, inner, bias=bias)
        self.expand = nn.Linear(inner, channels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape."""
        return x * self.expand(F.relu(self.reduce(x.mean((1, 2), keepdim=True)))).sigmoid()


class LayerScale(nn.Module):
    """Every channel times a number of its own.

    Args:
        channels: D.
        value: that they begin with.
    """

    def __init__(self, channels: int, value: float):
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """All channels begin alike."""
        init.constant_(self.weight, self.value)


class MapBlock(GradientCheckpointingLayer):
    """x + drop_path(mixer(norm(x))), and the same with an MLP where there is one.

    Args:
        norm, mixer: of maps.
        mlp_norm, mlp: the second half, or None.
        drop_path: rate of stochastic depth.
        scale: of what the mixer gave; none when None.
        mlp_scale: the same of the MLP.
    """

    def __init__(
        self,
        norm: nn.Module,
        mixer: nn.Module,
        mlp_norm: nn.Module | None = None,
        mlp: nn.Module | None = None,
        drop_path: float = 0.0,
        scale: LayerScale | None = None,
        mlp_scale: LayerScale | None = None,
    ):
        super().__init__()
        self.norm, self.mixer, self.mlp_norm, self.mlp = norm, mixer, mlp_norm, mlp
        self.scale, self.mlp_scale = scale, mlp_scale
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self._added(hidden_states, self.mixer(self.norm(hidden_states)), self.scale)
        if self.mlp is None:
            return hidden_states
        return self._added(hidden_states, self.mlp(self.mlp_norm(hidden_states)), self.mlp_scale)

    def _added(self, hidden_states: torch.Tensor, branch: torch.Tensor, scale: LayerScale | None) -> torch.Tensor:
        return hidden_states + self.drop_path(branch if scale is None else scale(branch))


class Stage(nn.Module):
    """Blocks of one width, after a step that halves the map where there is one."""

    def __init__(self, downsample: nn.Module | None, blocks: list[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class MapEncoder(nn.Module):
    """Images to the positions `[B, h * w, D]` of the stem and of every stage, each with its grid (h, w).

    What is given is what the next stage reads, so that gradients can be kept of it.

    Args:
        embeddings: `[B, C, H, W]` -> the stem's map.
        stages: map -> map.
    """

    def __init__(self, embeddings: nn.Module, stages: list[nn.Module]):
        super().__init__()
        self.embeddings = embeddings
        self.stages = nn.ModuleList(stages)

    def forward(self, pixel_values: torch.Tensor) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        states = [_rows(self.embeddings(pixel_values))]
        for stage in self.stages:
            tokens, grid = states[-1]
            states.append(_rows(stage(tokens.unflatten(1, grid))))
        return states


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    return x.flatten(1, 2), tuple(x.shape[1:3])


class PatchStem(nn.Module):
    """Images to the first map: one convolution of disjoint patches, or several that overlap, each with a norm.

    Args:
        sizes: of each convolution: input channels, output channels, side, step, padding.
        norms: of each convolution's output.
    """

    def __init__(self, sizes: list[tuple[int, int, int, int, int]], norms: list[nn.Module]):
        super().__init__()
        self.convolutions = nn.ModuleList(NormedConvolution(*s, norm) for s, norm in zip(sizes, norms, strict=True))
        self.act = nn.GELU()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` -> `[B, h, w, D]`."""
        x = pixel_values.to(self.convolutions[0].conv.weight.dtype).permute(0, 2, 3, 1)
        for i, convolution in enumerate(self.convolutions):
            x = convolution(self.act(x) if i else x)
        return x


def depthwise(channels: int, side: int, bias: bool, stride: int = 1) -> nn.Conv2d:
    """A convolution of each channel by itself that keeps the map's size, or divides it by `stride`, rounding up."""
    return nn.Conv2d(channels, channels, side, stride, side // 2, groups=channels, bias=bias)


def convolved(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A channel-last map through a module of PyTorch's layout; permuting is free, as PyTorch has kernels for both."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def reset_convolution(conv: nn.Conv2d) -> None:
    """PyTorch's initialisation of a convolution."""
    init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
    if conv.bias is not None:
        bound = (conv.weight[0].numel()) ** -0.5
        init.uniform_(conv.bias, -bound, bound)
