# SPDX-License-Identifier: Apache-2.0
"""transformers' tests that do not apply here, and why: class of ours, or any base of it -> test -> reason."""

from vlmamba.models.modeling_utils import CACHE

_GENERATION = "not in the source distribution: tests/models/test_generation.py holds what they would"
_RENAMED = "the one renaming of ours reads files of DETR heads; what is saved has the model's own names"
_BOTH_NAMES = "cache_params stays a name of cache: it is the only one before transformers 5.24"
_PATCHES = "images are embedded by a convolution: tests/models/test_encoders.py exchanges it"
_SEVERAL = "several encoders: their inner states have no common length, so none are given"
_ONCE = "takes 5 s and shows the same for every family: it runs for Vim and for the VLM with Mamba"
_TOR = "of embeddings nobody knows which are <tor>: the traversal of rationale reads ids"
_ATTENTION = 'there is no attention; a tower that has some takes attn_implementation={"vision_config": ...}'

_TRAINED = "takes 6 s of 300 steps: VLMambaTest and the language models' tests take them"

_LONG = {"test_bc_torch_dtype": _ONCE, "test_training_overfit": _TRAINED}
_ENCODERS_ONCE = ("EfficientVMamba", "LocalVim", "LocalVMamba", "MambaND", "MambaR", "MambaVision", "MSVMamba")

# transformers before 5.24 looks for a replacement in what the tokens decode to, here with blanks between words
_DECODED = "before transformers 5.24 the test needs a tokenizer that decodes to the text it read"

SKIPS: dict[str, dict[str, str]] = {
    "VLMambaTests": {
        "test_generation_tester_mixin_inheritance": _GENERATION,
        "test_reverse_loading_mapping": _RENAMED,
        "test_bc_cache_name_forward": _BOTH_NAMES,
        "test_can_set_attention_dynamically_composite_model": _ATTENTION,
    },
    "VLMambaOfMamba2Test": _LONG,
    "VLMambaOfFalconMambaTest": _LONG,
    "VLMambaOfFusedTowerTest": {**_LONG, "test_get_image_features_hidden_states": _SEVERAL},
    "VLMambaOfRationaleTest": {**_LONG, "test_inputs_embeds_matches_input_ids": _TOR},
    "LanguageModelTests": {
        "test_generation_tester_mixin_inheritance": _GENERATION,
        "test_bc_cache_name_forward": _BOTH_NAMES,
    },
    "EncoderTests": {
        "test_model_get_set_embeddings": _PATCHES,
        "test_reverse_loading_mapping": _RENAMED,
    },
    "FusedVisionTest": {
        "test_hidden_states_output": _SEVERAL,
        "test_retain_grad_hidden_states_attentions": _SEVERAL,
        "test_bc_torch_dtype": _ONCE,
    },
    **{f"{name}EncoderTest": {"test_bc_torch_dtype": _ONCE} for name in (*_ENCODERS_ONCE, "PlainMamba", "VMamba")},
    "VLMambaProcessorTest": {
        "test_if_input_has_mismatching_tokens_and_mm_data": "the same error in other words, which name both numbers",
        **({"test_replacement_offsets": _DECODED} if CACHE == "cache_params" else {}),
    },
    "ImageProcessorTests": {"test_call_numpy_4_channels": "pictures have three channels: padding has a colour"},
}
