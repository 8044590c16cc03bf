# SPDX-License-Identifier: Apache-2.0
"""What is measured: shapes of scans and sizes of models, in tables.

Shape legend: B batch, K directions, L rows, D channels, N state.
"""

from dataclasses import dataclass

import torch

from vlmamba import get_scan


@dataclass(frozen=True)
class ScanShape:
    """A scan of one layer of a known model.

    Args:
        name: what `--shapes` calls it.
        title: what it is.
        batch, length, channels, states: B, L, D, N.
        order: name of the scan order; its directions are K. None reads the rows once, as they come.
        grid: height and width of the rows.
        gate: whether a gate z multiplies the result.
        own_inputs: whether every direction has its own x (Vim's convolutions run along the direction).
    """

    name: str
    title: str
    batch: int
    length: int
    channels: int
    states: int
    order: str | None = None
    grid: tuple[int, int] | None = None
    gate: bool = True
    own_inputs: bool = False

    @property
    def directions(self) -> int:
        """K."""
        return 1 if self.order is None else get_scan(self.order).num_paths

    @property
    def elements(self) -> int:
        """Batch x direction x row x channel: what "ns per element" divides by."""
        return self.batch * self.directions * self.length * self.channels

    @property
    def description(self) -> str:
        """One line with every size."""
        directions = f" x {self.directions} directions" if self.directions > 1 else ""
        sizes = f"B{self.batch} L{self.length} D{self.channels} N{self.states}{directions}"
        return f"{self.title} {sizes}{', gate' if self.gate else ''}"

    def paths(self) -> torch.Tensor | None:
        """int32 `[K, L]`, or None when the rows are read as they come."""
        return None if self.order is None else get_scan(self.order).paths(*self.grid)

    def inputs(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Random float32 operands in rows, channels last, as `vlmamba.ops.selective_scan` takes them."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        B, K, L, D, N = self.batch, self.directions, self.length, self.channels, self.states
        own = (K,) if self.own_inputs else ()
        operands = {
            "x": normal(B, *own, L, D),
            "dt": 0.5 * normal(B, K, L, D),
            "A": -torch.arange(1, N + 1).float().expand(K, D, N) * (1 + 0.1 * normal(K, D, N)).abs(),
            "B": normal(B, K, L, N),
            "C": normal(B, K, L, N),
            "D": normal(K, D),
            "dt_bias": normal(K, D) - 3,
        }
        return operands | ({"z": normal(B, L, D)} if self.gate else {})


SCANS = {
    shape.name: shape
    for shape in (
        ScanShape("a", "Mamba-130m layer", 1, 2048, 1536, 16),
        ScanShape("b", "Vim-S layer", 4, 197, 768, 16, "bidirectional", (1, 197), own_inputs=True),
        ScanShape("c1", "VMamba first stage", 2, 3136, 192, 1, "cross_scan", (56, 56), gate=False),
        ScanShape("c2", "VMamba third stage", 2, 196, 768, 1, "cross_scan", (14, 14), gate=False),
        ScanShape("n8", "few states", 1, 197, 768, 8),
        ScanShape("n64", "many states", 1, 197, 768, 64),
        ScanShape("n128", "very many states", 1, 197, 768, 128),
    )
}
QUICK_SCANS = {
    shape.name: shape
    for shape in (
        ScanShape("a", "tiny language", 1, 24, 16, 16),
        ScanShape("b", "tiny Vim", 2, 9, 16, 4, "bidirectional", (1, 9), own_inputs=True),
        ScanShape("c1", "tiny VMamba", 1, 12, 16, 1, "cross_scan", (3, 4), gate=False),
    )
}


def length_curve(quick: bool) -> tuple[ScanShape, list[int]]:
    """The scan whose length grows, and its lengths."""
    return (QUICK_SCANS["a"], [16, 32, 64]) if quick else (SCANS["a"], [1024 * 2**i for i in range(7)])


# transformers.MambaConfig of state-spaces/mamba-130m-hf
MAMBA_130M = {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16, "vocab_size": 50280}
QUICK_MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 96}
PROMPTS = [512, 2048]
QUICK_PROMPTS = [8, 16]

RESOLUTIONS = [224, 384, 512, 768, 1024]
QUICK_RESOLUTIONS = [32, 64]
# batch norms of one image in training need a last map of several positions
QUICK_SIDES = [64, 96]


@dataclass(frozen=True)
class VlmSizes:
    """Two vision language models of equal size.

    Args:
        side: of a tile in pixels; an encoder's patches are 16 x 16 of them.
        vocabulary: of both language models, embeddings shared with the head.
        vim, vit: of `VimConfig` and `SiglipVisionConfig`.
        mamba, llama: of `MambaConfig` and `LlamaConfig`.
    """

    side: int
    vocabulary: int
    vim: dict[str, int]
    vit: dict[str, int]
    mamba: dict[str, int]
    llama: dict[str, int]


TILES = (1, 2, 4, 8, 16, 32, 64)
# Vim-T and a ViT-Ti, mamba-130m and a Llama of as many parameters
VLM_130M = VlmSizes(
    side=160,
    vocabulary=50280,
    vim={"hidden_size": 192, "num_hidden_layers": 24},
    vit={
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 1088,
        "patch_size": 16,
        "vision_use_head": False,
    },
    mamba={"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16},
    llama={
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "intermediate_size": 2384,
    },
)
QUICK_TILES = (1, 2)
QUICK_VLM = VlmSizes(
    side=32,
    vocabulary=96,
    vim={"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    vit={
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 16,
        "vision_use_head": False,
    },
    mamba={"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    llama={
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
)
