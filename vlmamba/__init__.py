# SPDX-License-Identifier: Apache-2.0
"""vlmamba: Mamba for vision and language, on one selective-scan kernel.

Importing the package registers its models with transformers' Auto classes, so that
`AutoModelForImageTextToText.from_pretrained(folder)` and `pipeline("image-text-to-text", model=folder)` work.
"""

import logging
from importlib import import_module

from vlmamba.models import ENCODER_CLASSES, ENCODERS
from vlmamba.version import __version__

_PUBLIC = {
    "vlmamba.convert": ["from_official"],
    "vlmamba.layers.kernels": ["apply_kernels"],
    "vlmamba.layers.quantize": ["quantize"],
    "vlmamba.models.fused_vision": ["FusedVisionConfig", "FusedVisionModel"],
    "vlmamba.models.fusionmamba": ["FusionMambaConfig", "FusionMambaForImageFusion"],
    "vlmamba.models.mamba": ["MambaForCausalLM"],
    "vlmamba.models.mamba2": ["Mamba2ForCausalLM"],
    "vlmamba.models.mambadfuse": ["MambaDFuseConfig", "MambaDFuseForImageFusion"],
    "vlmamba.models.prefix": ["PrefixState"],
    "vlmamba.models.psrben": ["PSRBenConfig", "PSRBenForImageFusion"],
    "vlmamba.models.sigma": ["SigmaConfig", "SigmaForSemanticSegmentation", "SigmaModel"],
    "vlmamba.models.vlmamba": [
        "CobraImageProcessor",
        "VLMambaConfig",
        "VLMambaForConditionalGeneration",
        "VLMambaImageProcessor",
        "VLMambaModel",
        "VLMambaProcessor",
        "VLMambaProjectorConfig",
    ],
    "vlmamba.scans": ["Scan", "get_scan", "list_scans", "register_scan"],
}
for _family, _prefix in ENCODERS.items():
    _PUBLIC[f"vlmamba.models.{_family}"] = [f"{_prefix}{name}" for name in ENCODER_CLASSES]
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", "ops", *_MODULE_OF]


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    if name in ("ops", "scans", "layers", "models", "convert", "data", "metrics", "cli"):
        return import_module(f"vlmamba.{name}")
    raise AttributeError(f"module 'vlmamba' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


# transformers imports torchao where it is installed, and torch remarks on how that registers its classes
_TORCHAO = "register_constant() on Enum subclasses is deprecated"
logging.getLogger("torch.utils._pytree").addFilter(lambda record: _TORCHAO not in str(record.msg))

import_module("vlmamba.auto").register()
