# SPDX-License-Identifier: Apache-2.0
"""Official Mamba-ND checkpoints (jacklishufan/Mamba-ND, an ImageClassifier with Mamba2DModel) -> our classifier."""

from typing import Any

import torch

from vlmamba.models.mamband.configuration_mamband import MambaNDConfig
from vlmamba.models.mamband.modeling_mamband import MambaNDForImageClassification
from vlmamba.models.official_names import matched

MODELS = {"image-classification": MambaNDForImageClassification}
_LAYER = r"^backbone\.layers\.(\d+)\."
# official key -> ours
KEYS = [
    (r"^backbone\.pos_embed$", "mamband.embeddings.position_embeddings"),
    (r"^backbone\.patch_embed\.projection\.", "mamband.embeddings.patch_embeddings."),
    (_LAYER + r"norm\.", r"mamband.layers.\1.norm."),
    (_LAYER + r"mixer\.(in_proj|out_proj)\.", r"mamband.layers.\1.mixer.\2."),
    (_LAYER + r"mixer\.(conv1d|x_proj|dt_proj)\.", r"mamband.layers.\1.mixer.directions.0.\2."),
    (_LAYER + r"mixer\.(A_log|D)$", r"mamband.layers.\1.mixer.directions.0.\2"),
    (_LAYER + r"down_sample_layer\.(norm|reduction)\.", r"mamband.layers.\1.downsample.\2."),
    (r"^backbone\.ln1\.", "mamband.norm."),
    (r"^backbone\.ln2\.", "mamband.pooled_norm."),
    (r"^head\.fc\.", "classifier."),
]
_WIDTHS = {"small": 384, "base": 768}
_BLOCKS = 12
# what an argument must be: the code of other values was not released, or no published model uses them
_FIXED = {
    "out_type": "avg_featmap",
    "with_cls_token": False,
    "fused_add_norm": False,
    "is_2d": False,
    "use_v2": False,
    "use_nd": False,
    "force_a2": False,
    "use_mlp": False,
    "split_head": False,
    "duplicate": None,
    "pre_norm": False,
    "patch_cfg": {},
}
_ROWS, _COLUMNS = ("raster", "raster_reversed"), ("column", "column_reversed")


def _scan(transpose: bool, reverse: bool) -> str | list[str]:
    """Which order each layer reads: columns in the second two of four layers, backwards in every second."""
    if transpose and reverse:
        return "mamba_nd_2d_layers0_3"
    first, second = _ROWS, _COLUMNS if transpose else _ROWS
    return [order for pair in (first, second) for order in (pair if reverse else pair[:1] * 2)]


def _epsilon(backbone: dict[str, Any]) -> float:
    given = [backbone.get(name, {"type": "LN", "eps": 1e-6}) for name in ("norm_cfg", "norm_cfg_2")]
    for name, norm in zip(("norm_cfg", "norm_cfg_2"), given, strict=True):
        if norm.get("type") != "LN" or norm.get("eps", 1e-5) != given[0].get("eps", 1e-5):
            raise ValueError(f"mamband: {name} is {norm!r}, expected type 'LN', norm_cfg and norm_cfg_2 with one eps")
    return given[0].get("eps", 1e-5)


def config_from_official(arguments: dict[str, Any]) -> MambaNDConfig:
    """The config of an ImageClassifier: `backbone` has the arguments of `Mamba2DModel`, beside it stands `num_classes`.

    What is left out takes the official default, or where that was never released what the published models have.

    Raises:
        ValueError: an option that has no counterpart is set.
    """
    backbone = arguments.get("backbone", {})
    get = backbone.get
    for name, expected in _FIXED.items():
        if (value := get(name, expected)) != expected:
            raise ValueError(f"mamband: {name} is {value!r}, expected {expected!r} as in the published models")
    arch = get("arch", "base")
    if isinstance(arch, str) and arch.lower() not in _WIDTHS:
        raise ValueError(f"mamband: arch is {arch!r}, expected a dict or one of {', '.join(_WIDTHS)}")
    if isinstance(arch, str):
        arch = {"embed_dims": _WIDTHS[arch.lower()], "num_layers": _BLOCKS}
    blocks = arch["num_layers"] if get("num_layers") is None else get("num_layers")
    layers = 2 * blocks  # the zoo counts blocks with an MLP, of which two without stand for one
    downsample = [i for i in arch.get("downsample", get("downsample")) or [] if i < layers]
    if downsample and not get("constant_dim", False):
        raise ValueError(f"mamband: constant_dim is False, expected True with downsample {downsample}")
    out = get("out_indices", -1)
    if list(out if isinstance(out, list | tuple) else [out]) not in ([-1], [layers - 1]):
        raise ValueError(f"mamband: out_indices is {out!r}, expected -1, the last layer")
    return MambaNDConfig(
        hidden_size=arch["embed_dims"] if get("embed_dims") is None else get("embed_dims"),
        num_hidden_layers=layers,
        image_size=get("img_size", 224),
        patch_size=get("patch_size", 16),
        num_channels=get("in_channels", 3),
        num_labels=arguments.get("num_classes", 1000),
        downsample_layers=downsample,
        state_size=get("d_state", 16),
        expand=2 if get("expand") is None else get("expand"),
        scan=_scan(get("has_transpose", True), get("has_reverse", True)),
        interpolation=get("interpolate_mode", "bicubic"),
        use_final_norm=get("final_norm", True),
        final_norm_epsilon=_epsilon(backbone),
        dropout=get("drop_rate", 0.0),
        drop_path_rate=get("drop_path_rate", 0.0),
    )


def _by_position(tensor: torch.Tensor) -> torch.Tensor:
    """The last axis, `4 * D` of the 2 x 2 tokens that merge, in our order: officially it is channel, row, column."""
    return tensor.unflatten(-1, (-1, 2, 2)).movedim(-3, -1).transpose(-3, -2).flatten(-3)


def rename(state_dict: dict[str, torch.Tensor], config: MambaNDConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and orders to ours; names that match nothing are kept, so that loading reports them."""
    renamed = {}
    for key, tensor in state_dict.items():
        key = matched(key, KEYS)
        renamed[key] = _by_position(tensor) if ".downsample." in key and not tensor.shape[-1] % 4 else tensor
    return renamed
