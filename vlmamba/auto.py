# SPDX-License-Identifier: Apache-2.0
"""Makes the models known to transformers' Auto classes."""

from importlib import import_module

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from vlmamba.models import ENCODER_CLASSES, ENCODERS
from vlmamba.models.fused_vision import FusedVisionConfig, FusedVisionModel
from vlmamba.models.vlmamba import (
    VLMambaConfig,
    VLMambaForConditionalGeneration,
    VLMambaImageProcessor,
    VLMambaModel,
    VLMambaProcessor,
    VLMambaProjectorConfig,
)


class OwnNames(WeightRenaming):
    """Puts back, on loading, the names of an encoder inside of a model whose own renaming is not bound to its parts.

    transformers renames every "out_proj" of a DETR checkpoint, its backbone's as well; what is saved is left alone.
    """

    __slots__ = ()

    def reverse_transform(self) -> "OwnNames":
        return self


def register() -> None:
    """Register every config, model and processor; doing it twice does no harm."""
    for family, prefix in ENCODERS.items():
        module = import_module(f"vlmamba.models.{family}")
        _register_encoder(*(getattr(module, f"{prefix}{name}") for name in ENCODER_CLASSES))
    for config in (FusedVisionConfig, VLMambaConfig, VLMambaProjectorConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(FusedVisionConfig, FusedVisionModel, exist_ok=True)
    for auto, model in (
        (AutoModel, VLMambaModel),
        (AutoModelForImageTextToText, VLMambaForConditionalGeneration),
        (AutoModelForMultimodalLM, VLMambaForConditionalGeneration),
    ):
        auto.register(VLMambaConfig, model, exist_ok=True)
    _register_image_processor(VLMambaConfig)
    AutoProcessor.register(VLMambaConfig, VLMambaProcessor, exist_ok=True)


def _register_encoder(backbone: type, config: type, classifier: type, model: type) -> None:
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForImageClassification.register(config, classifier, exist_ok=True)
    AutoBackbone.register(config, backbone, exist_ok=True)
    register_checkpoint_conversion_mapping(config.model_type, [OwnNames(r"\.o_proj\.", ".out_proj.")], overwrite=True)
    _register_image_processor(config)


def _register_image_processor(config: type) -> None:
    AutoImageProcessor.register(config, image_processor_classes={"torchvision": VLMambaImageProcessor}, exist_ok=True)
