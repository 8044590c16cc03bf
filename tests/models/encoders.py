# SPDX-License-Identifier: Apache-2.0
"""A tiny config of every vision encoder, with all the kinds of parts that it has."""

import vlmamba
from vlmamba.models import ENCODERS

_LOCAL = [
    ["raster", "column_reversed", "local_w2", "local_w7_flip"],
    ["raster_reversed", "column", "local_w2_flip", "local_w3"],
]
_TOKENS = {"hidden_size": 16, "num_hidden_layers": 4, "patch_size": 8, "state_size": 2}
_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "state_size": 2}
TINY = {
    "efficientvmamba": _STAGES,
    "localvim": {**_TOKENS, "directions": 2 * _LOCAL},
    "localvmamba": {**_STAGES, "directions": [*2 * _LOCAL, ["raster", "local_w3"]]},
    "mamband": {**_TOKENS, "downsample_layers": [1]},
    "mambar": {**_TOKENS, "num_registers": 4, "register_reduction": 2},
    "mambavision": {
        "stem_size": 4,
        "hidden_sizes": [4, 8, 12, 16],
        "depths": [1, 1, 2, 3],
        "num_conv_stages": 2,
        "window_sizes": [1, 1, 3, 2],
        "num_attention_heads": [1, 2, 3, 4],
        "state_size": 2,
        "layer_scale_init_value": 0.5,
    },
    "msvmamba": _STAGES,
    "plainmamba": {**_TOKENS, "conv_kernel": 3, "convolved_layers": [1], "layer_scale_init_value": 0.5},
    "vim": _TOKENS,
    "vmamba": {**_STAGES, "gate": "activated", "use_position_embeddings": True},
}


def config_of(family: str, **changes):
    """The tiny config of a family, for images of 64 pixels and 5 classes."""
    fields = {"image_size": 64, "num_labels": 5, **TINY[family], **changes}
    return getattr(vlmamba, f"{ENCODERS[family]}Config")(**fields)


def four_stages(family: str):
    """The tiny config with the four feature maps that dense heads read."""
    config = config_of(family)
    names = config.stage_names[-4:]
    return config_of(family, out_features=names, **({"add_fpn": True} if hasattr(config, "add_fpn") else {}))


def model_of(family: str, kind: str, **changes):
    """An initialised model: kind is "Model", "ForImageClassification" or "Backbone"."""
    return getattr(vlmamba, f"{ENCODERS[family]}{kind}")(config_of(family, **changes))
