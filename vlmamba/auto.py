# SPDX-License-Identifier: Apache-2.0
"""Makes the models known to transformers' Auto classes."""

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

from vlmamba.models.vim import VimConfig, VimForImageClassification, VimModel
from vlmamba.models.vlmamba import (
    VLMambaConfig,
    VLMambaForConditionalGeneration,
    VLMambaImageProcessor,
    VLMambaModel,
    VLMambaProcessor,
    VLMambaProjectorConfig,
)
from vlmamba.models.vmamba import VMambaBackbone, VMambaConfig, VMambaForImageClassification, VMambaModel


def register() -> None:
    """Register every config, model and processor; doing it twice does no harm."""
    for config in (VimConfig, VMambaConfig, VLMambaConfig, VLMambaProjectorConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto, config, model in (
        (AutoModel, VimConfig, VimModel),
        (AutoModelForImageClassification, VimConfig, VimForImageClassification),
        (AutoModel, VMambaConfig, VMambaModel),
        (AutoModelForImageClassification, VMambaConfig, VMambaForImageClassification),
        (AutoBackbone, VMambaConfig, VMambaBackbone),
        (AutoModel, VLMambaConfig, VLMambaModel),
        (AutoModelForImageTextToText, VLMambaConfig, VLMambaForConditionalGeneration),
        (AutoModelForMultimodalLM, VLMambaConfig, VLMambaForConditionalGeneration),
    ):
        auto.register(config, model, exist_ok=True)
    for config in (VimConfig, VMambaConfig, VLMambaConfig):
        AutoImageProcessor.register(
            config, image_processor_classes={"torchvision": VLMambaImageProcessor}, exist_ok=True
        )
    AutoProcessor.register(VLMambaConfig, VLMambaProcessor, exist_ok=True)
