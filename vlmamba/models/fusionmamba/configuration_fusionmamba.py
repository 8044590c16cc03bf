# SPDX-License-Identifier: Apache-2.0
"""Configuration of FusionMamba (Xie et al., arXiv:2404.09498)."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from vlmamba.models.remote_code import PackagedConfig
from vlmamba.models.vision_config import check_scan

# published model -> what it differs in from the defaults: FusionMambaConfig(**PRESETS["tiny"])
PRESETS = {
    "base": {},
    "tiny": {"depths": (2, 2, 1, 2), "decoder_depths": (2, 1, 2, 2)},  # for CT and MRI
}


@strict
class FusionMambaConfig(PackagedConfig, PreTrainedConfig):
    r"""Sizes and choices of a FusionMamba; the defaults are those of the published model.

    Args:
        num_channels: channels of either image, and of the fused one.
        patch_size: step between the positions of the first stage, in pixels.
        hidden_sizes: width of each stage of the encoder, each twice the one before; the decoder's are these in reverse.
        depths: number of blocks of each stage of the encoder.
        decoder_depths: number of blocks of each stage of the decoder, the coarsest first.
        scan: name of the scan, or of several that are combined; their orders have own parameters and are summed, where
            they are disjoint stitched together.
        state_size: N of the selective scans.
        conv_kernel: side of the mixers' depthwise convolution, odd; 1 for none.
        expand: inner width of the scans over the stage's width.
        hidden_act: activation of the mixers' convolution and gate.
        mlp_ratio: inner width of the MLPs over the stage's width.
        own_gates: where both images are scanned as one, each gives a gate of its own, as the paper has it; the
            published models' second gate is the first's, activated twice.
        image_weight: what of either image is added to the output.
        drop_path_rate: stochastic depth of the blocks next to the bottleneck; it falls linearly to 0 on both ways.
        layer_norm_epsilon: epsilon of the norms.
        initializer_range: standard deviation of the truncated normal for linear layers.

    Example:
        >>> model = FusionMambaForImageFusion(FusionMambaConfig(hidden_sizes=(24, 48, 96, 192), depths=(1, 1, 1, 1)))
    """

    model_type = "fusionmamba"

    num_channels: int = 1
    patch_size: int = 4
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 9, 2)
    decoder_depths: list[int] | tuple[int, ...] | None = None
    scan: str | list[str] | tuple[str, ...] = "es2d_step2"
    state_size: int = 16
    conv_kernel: int = 3
    expand: float | int = 2.0
    hidden_act: str = "silu"
    mlp_ratio: float | int = 4.0
    own_gates: bool = False
    image_weight: float | int = 2.0
    drop_path_rate: float | int = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.decoder_depths is None:
            self.decoder_depths = list(reversed(self.depths))
        super().__post_init__(**kwargs)

    @property
    def stride(self) -> int:
        """Pixels from one position of the last stage to the next: images are padded to multiples of it."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive and fit, and names are known."""
        for name in ("num_channels", "patch_size", "hidden_sizes", "depths", "decoder_depths", "state_size"):
            value = getattr(self, name)
            parts = value if isinstance(value, list | tuple) else [value]
            if not parts or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in parts):
                raise ValueError(f"{name} is {value!r}, expected positive integers")
        for name in ("depths", "decoder_depths"):
            if len(getattr(self, name)) != len(self.hidden_sizes):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected {len(self.hidden_sizes)} numbers, one for each of "
                    f"hidden_sizes {self.hidden_sizes}"
                )
        first = self.hidden_sizes[0]
        if first < 8 or list(self.hidden_sizes) != [first * 2**i for i in range(len(self.hidden_sizes))]:
            raise ValueError(f"hidden_sizes is {self.hidden_sizes}, expected at least 8, and to double at every stage")
        if first % self.patch_size:
            raise ValueError(f"hidden_sizes begins with {first}, expected a multiple of patch_size {self.patch_size}")
        if self.conv_kernel < 1 or self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}, expected an odd side")
        for name in ("expand", "mlp_ratio"):
            if int(getattr(self, name) * first) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive inner width")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}, expected 0 to below 1")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}, expected an activation of transformers")
        check_scan(self.scan)
