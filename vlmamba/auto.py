# SPDX-License-Identifier: Apache-2.0
"""Makes the models known to transformers' Auto classes."""

from transformers import (
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


def register() -> None:
    """Register every config, model and processor; doing it twice does no harm."""
    for config in (VimConfig, VLMambaConfig, VLMambaProjectorConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto, config, model in (
        (AutoModel, VimConfig, VimModel),
        (AutoModelForImageClassification, VimConfig, VimForImageClassification),
        (AutoModel, VLMambaConfig, VLMambaModel),
        (AutoModelForImageTextToText, VLMambaConfig, VLMambaForConditionalGeneration),
        (AutoModelForMultimodalLM, VLMambaConfig, VLMambaForConditionalGeneration),
    ):
        auto.register(config, model, exist_ok=True)
    for config in (VimConfig, VLMambaConfig):
        AutoImageProcessor.register(
            config, image_processor_classes={"torchvision": VLMambaImageProcessor}, exist_ok=True
        )
    AutoProcessor.register(VLMambaConfig, VLMambaProcessor, exist_ok=True)
