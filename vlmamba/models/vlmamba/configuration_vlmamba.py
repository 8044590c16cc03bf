# SPDX-License-Identifier: Apache-2.0
"""Configuration of VLMamba: an encoder, a connector and a language model, each named by its own config."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from vlmamba.models.remote_code import PackagedConfig
from vlmamba.models.vision_features import check_vision_config, patch_grid, vision_size
from vlmamba.models.vlmamba.presets import check_fields, preset_arguments
from vlmamba.scans import get_scan

# connectors that leave a grid of their own
POOLING = ("ldp", "fused_ldp")
# transformers' language models whose layers are all Mamba-1 or Mamba-2
LANGUAGE_MODELS = ("mamba", "mamba2", "falcon_mamba")


@strict
class VLMambaProjectorConfig(PackagedConfig, PreTrainedConfig):
    r"""The connector between encoder and language model (`vlmamba.layers.connectors`).

    Args:
        projector_type: one of VL-Mamba (arXiv:2403.13600, section 3.2): "mlp", "vss_mlp" or "vss_l2", its final choice;
            or of Cobra (arXiv:2403.14520): "linear", "mlp", "fused_mlp", its final choice, "ldp" or "fused_ldp". The
            last two average the patches to a grid of `pool_size`, so that an image takes fewer tokens.
        scan: order in which the patches are scanned: "bidirectional" (BSM), "cross_scan" (CSM) or any registered scan.
        shared_directions: one Mamba layer for all directions; False gives each its own parameters.
        average_directions: mean instead of sum over the directions.
        state_size: N of the selective scan.
        conv_kernel: taps of its convolution.
        expand: its inner width over its width.
        pool_size: rows and columns of image tokens that "ldp" and "fused_ldp" leave.
        hidden_act: activation of the linear layers.
        layer_norm_epsilon: epsilon of the norm.
    """

    model_type = "vlmamba_projector"
    base_config_key = "projector_config"

    projector_type: Literal["linear", "mlp", "fused_mlp", "ldp", "fused_ldp", "vss_mlp", "vss_l2"] = "vss_l2"
    scan: str = "bidirectional"
    shared_directions: bool = True
    average_directions: bool = False
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    pool_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_epsilon: float = 1e-5

    def validate_scan(self):
        """Part of the validation of strict configs: the scan must be registered."""
        get_scan(self.scan)

    def validate_pool_size(self):
        """Part of the validation of strict configs: an image leaves at least one token."""
        if self.pool_size < 1:
            raise ValueError(f"pool_size is {self.pool_size}, expected 1 or more rows and columns of image tokens")

    def num_tokens(self, rows: int, columns: int) -> int:
        """Tokens that become of rows x columns patches."""
        return self.pool_size**2 if self.projector_type in POOLING else rows * columns


@strict
class VLMambaConfig(PackagedConfig, PreTrainedConfig):
    r"""Configuration of a `VLMambaForConditionalGeneration`.

    Args:
        vision_config: the config, or dict with `model_type`, of a vision model with patches: any of this library,
            `fused_vision`, transformers' (SigLIP, DINOv2, Swin, ConvNeXt, ...), `timm_wrapper`; default Vim.
        projector_config: a `VLMambaProjectorConfig` or dict.
        text_config: a language model's config or dict with `model_type` mamba (the default), mamba2 or falcon_mamba.
        image_token_id: the placeholder token that image features replace; the language model needs no row for it.
        vision_feature_layer: which hidden states of the encoder to read; -1 is its (normed) output.
        tie_word_embeddings: share the embeddings with the head; as `text_config` says when None.
        rationale_config: the config, or dict, of a small language model that a `RationaleTraversal` reads the question
            with (Meteor, arXiv:2405.15574); None for none. Its vocabulary is that of the same tokenizer.
        tor_token_id: the token `<tor>`, at whose places its features enter the language model.

    Example:
        >>> config = VLMambaConfig(vision_config={"model_type": "vim", "hidden_size": 192})
    """

    model_type = "vlmamba"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vim"),
        "projector_config": SubConfigSpec(config_class=VLMambaProjectorConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="mamba"),
        "rationale_config": SubConfigSpec(config_class=AutoConfig, model_type="mamba", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    projector_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 4
    vision_feature_layer: int = -1
    tie_word_embeddings: bool | None = None
    rationale_config: dict | PreTrainedConfig | None = None
    tor_token_id: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self.text_config.tie_word_embeddings = self.tie_word_embeddings

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "VLMambaConfig":
        """The config of a named architecture; `vlmamba.convert.list_presets("vlmamba")` has them all.

        Args:
            name: `vl-mamba-2.8b` and other sizes, `cobra-3b` and its variants, `vlmamba-tiny` and others.
            **changes: arguments of this class. A dict changes those fields of a part that it names, or, with another
                `model_type`, takes the part's place: any encoder and any Mamba-1 or Mamba-2 language model will do.

        Raises:
            ValueError: an unknown name, of a preset or of a field; the message has the nearest.

        Example:
            >>> config = VLMambaConfig.from_preset("vl-mamba-2.8b", projector_config={"scan": "cross_scan"})
            >>> with torch.device("meta"):
            ...     model = VLMambaForConditionalGeneration(config)
        """
        config = cls(**preset_arguments(name, changes))
        check_fields("a VLMambaConfig", changes, cls)
        for part, value in changes.items():
            if isinstance(value, dict) and isinstance(made := getattr(config, part), PreTrainedConfig):
                check_fields(part, value, type(made))
        return config

    def validate_vision_config(self):
        """Part of the validation of strict configs: the encoder must give features of patches."""
        check_vision_config(self.vision_config, "vision_config")

    def validate_text_config(self):
        """Part of the validation of strict configs: the language model must have states and no attention."""
        _check_language_model(self.text_config, "text_config")

    def validate_rationale_config(self):
        """Part of the validation of strict configs: as `text_config`, and its features need a place."""
        if self.rationale_config is None:
            return
        _check_language_model(self.rationale_config, "rationale_config")
        if self.tor_token_id is None:
            raise ValueError("tor_token_id is None, expected the id of <tor>: rationale_config is given")
        words = self.rationale_config.vocab_size
        if self.tor_token_id >= words:
            raise ValueError(f"tor_token_id is {self.tor_token_id}, expected one of rationale_config's {words} tokens")

    @property
    def image_seq_length(self) -> int:
        """Placeholder tokens that one image of the encoder's size takes."""
        return self.projector_config.num_tokens(*patch_grid(self.vision_config, *vision_size(self.vision_config)))


def _check_language_model(config: PreTrainedConfig, name: str) -> None:
    if config.model_type not in LANGUAGE_MODELS:
        kinds = ", ".join(LANGUAGE_MODELS)
        raise ValueError(f"{name}: a {config.model_type} config is not supported, expected {kinds}")
