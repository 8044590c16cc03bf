# SPDX-License-Identifier: Apache-2.0
"""Configuration of Sigma (arXiv:2404.04256)."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from vlmamba.models.remote_code import PackagedConfig

# the encoder is VMamba's first release: no MLPs, gated mixers, patch merging
ENCODER = {
    "state_size": 16,
    "conv_bias": True,
    "expand": 2.0,
    "gate": "activated",
    "mlp_ratio": 0.0,
    "patch_embedding": "single",
    "downsample": "merge",
    "depths": (2, 2, 9, 2),
    "drop_path_rate": 0.2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


def _preset(**changes: object) -> dict[str, object]:
    return {"backbone_config": {"model_type": "vmamba", **ENCODER, **changes}}


# published model -> what it differs in from the defaults: SigmaConfig(**PRESETS["small"], num_labels=9)
PRESETS = {
    "tiny": _preset(),
    "small": _preset(depths=(2, 2, 27, 2), drop_path_rate=0.3),
    "base": _preset(hidden_sizes=(128, 256, 512, 1024), depths=(2, 2, 27, 2), drop_path_rate=0.6),
}


@strict
class SigmaConfig(PackagedConfig, PreTrainedConfig):
    r"""Sizes and choices of a Sigma model; the defaults are Sigma-T, `PRESETS` has the other published ones.

    Args:
        backbone_config: the config, or dict with `model_type`, of the encoder that both images go through: any
            backbone of this library or of transformers that gives two or more maps, from fine to coarse.
        fusion_state_size: N of the selective scans that fuse the two images.
        decoder_state_size: N of those of the decoder.
        expand: inner width of the fusion's and the decoder's mixers over that of their maps.
        decoder_depths: number of the decoder's blocks at each map but the coarsest, from fine to coarse.
        compression: width of the decoder's maps over that between the convolutions of its channel attention.
        reduction: width of the decoder's maps over that inside of its channel gates, which is at least 1.
        decoder_drop_path_rate: stochastic depth of the decoder's coarsest block; finer ones fall linearly to 0. The
            default is what the published models have: 0.1, of 16 blocks of which they use 12.
        layer_norm_epsilon: epsilon of the norms.
        initializer_range: standard deviation of the truncated normal for linear layers.
        semantic_loss_ignore_index: label of pixels that the loss leaves out.

    Example:
        >>> model = SigmaForSemanticSegmentation(SigmaConfig(num_labels=9))  # Sigma-T for MFNet
    """

    model_type = "sigma"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="vmamba", init_kwargs=ENCODER),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    fusion_state_size: int = 4
    decoder_state_size: int = 4
    expand: float | int = 2.0
    decoder_depths: list[int] | tuple[int, ...] = (4, 4, 4)
    compression: int = 3
    reduction: int = 30
    decoder_drop_path_rate: float | int = 0.1 * 11 / 15
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255

    @property
    def num_channels(self) -> int:
        """Channels of each of the two images."""
        return getattr(self.backbone_config, "num_channels", 3)

    @property
    def decoder_drop_path_rates(self) -> list[list[float]]:
        """Rates of the blocks at every map, from fine to coarse."""
        count = sum(self.decoder_depths)
        rates = iter([self.decoder_drop_path_rate * i / max(count - 1, 1) for i in range(count)])
        return [[next(rates) for _ in range(depth)] for depth in self.decoder_depths]

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive, and there is a depth for every map."""
        sizes = {name: getattr(self, name) for name in ("fusion_state_size", "decoder_state_size", "compression")}
        sizes |= {"reduction": self.reduction}
        sizes |= {f"decoder_depths[{i}]": depth for i, depth in enumerate(self.decoder_depths)}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value!r}, expected a positive integer")
        if self.expand <= 0:
            raise ValueError(f"expand is {self.expand}, expected a positive factor")
        maps = getattr(self.backbone_config, "out_features", None)
        if maps is None:
            kind = getattr(self.backbone_config, "model_type", None)
            raise ValueError(f"backbone_config: model_type is {kind!r}, expected that of a backbone")
        if len(maps) < 2 or len(self.decoder_depths) != len(maps) - 1:
            raise ValueError(
                f"decoder_depths has {len(self.decoder_depths)} entries, expected one for each of the {len(maps)} maps "
                "of the backbone but the coarsest"
            )
