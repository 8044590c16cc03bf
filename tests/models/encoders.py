# SPDX-License-Identifier: Apache-2.0
"""A tiny config of every vision encoder, with all the kinds of parts that it has."""

import vlmamba
from vlmamba.models import ENCODERS

TINY = {
    "vim": {"hidden_size": 16, "num_hidden_layers": 4, "patch_size": 8, "state_size": 2},
    "vmamba": {
        "hidden_sizes": [8, 16, 16, 24],
        "depths": [1, 2, 1, 1],
        "gate": "activated",
        "use_position_embeddings": True,
    },
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
