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
    AutoModelForImageToImage,
    AutoModelForMultimodalLM,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from vlmamba.models import ENCODER_CLASSES, ENCODERS
from vlmamba.models.fused_vision import FusedVisionConfig, FusedVisionModel
from vlmamba.models.fusionmamba import FusionMambaConfig, FusionMambaForImageFusion
from vlmamba.models.mambadfuse import MambaDFuseConfig, MambaDFuseForImageFusion
from vlmamba.models.psrben import PSRBenConfig, PSRBenForImageFusion
from vlmamba.models.remote_code import remember
from vlmamba.models.sigma import SigmaConfig, SigmaForSemanticSegmentation, SigmaModel
from vlmamba.models.vlmamba import (
    CobraImageProcessor,
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
    for config in (
        FusedVisionConfig,
        FusionMambaConfig,
        MambaDFuseConfig,
        PSRBenConfig,
        SigmaConfig,
        VLMambaConfig,
        VLMambaProjectorConfig,
    ):
        _register_config(config)
    _register_model(AutoModel, FusedVisionConfig, FusedVisionModel)
    _register_model(AutoModel, SigmaConfig, SigmaModel)
    _register_model(AutoModelForSemanticSegmentation, SigmaConfig, SigmaForSemanticSegmentation)
    for auto in (AutoModel, AutoModelForImageToImage):
        _register_model(auto, FusionMambaConfig, FusionMambaForImageFusion)
        _register_model(auto, MambaDFuseConfig, MambaDFuseForImageFusion)
        _register_model(auto, PSRBenConfig, PSRBenForImageFusion)
    for auto, model in (
        (AutoModel, VLMambaModel),
        (AutoModelForImageTextToText, VLMambaForConditionalGeneration),
        (AutoModelForMultimodalLM, VLMambaForConditionalGeneration),
    ):
        _register_model(auto, VLMambaConfig, model)
    # by these names `transformers serve` tells what a model is
    for names in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
        names[VLMambaConfig.model_type] = VLMambaForConditionalGeneration.__name__
    _register_image_processor(VLMambaConfig)
    _register_image_processor(FusedVisionConfig, CobraImageProcessor)
    AutoProcessor.register(VLMambaConfig, VLMambaProcessor, exist_ok=True)


def _register_encoder(backbone: type, config: type, classifier: type, model: type) -> None:
    _register_config(config)
    _register_model(AutoModel, config, model)
    _register_model(AutoModelForImageClassification, config, classifier)
    _register_model(AutoBackbone, config, backbone)
    register_checkpoint_conversion_mapping(config.model_type, [OwnNames(r"\.o_proj\.", ".out_proj.")], overwrite=True)
    _register_image_processor(config)


def _register_config(config: type) -> None:
    AutoConfig.register(config.model_type, config, exist_ok=True)
    remember(config, AutoConfig, config)


def _register_model(auto: type, config: type, model: type) -> None:
    auto.register(config, model, exist_ok=True)
    remember(config, auto, model)


def _register_image_processor(config: type, processor: type = VLMambaImageProcessor) -> None:
    AutoImageProcessor.register(config, image_processor_classes={"torchvision": processor}, exist_ok=True)
