# SPDX-License-Identifier: Apache-2.0
"""The Mamba-2 language model: official outputs, saving, and what converters refuse."""

import pytest
import torch
import transformers

from tests import golden
from tests.close import assert_close
from vlmamba import Mamba2ForCausalLM, from_official
from vlmamba.layers.kernels import mixer_class
from vlmamba.models.modeling_utils import CACHE


@pytest.mark.parametrize("name", golden.names("mamba2-lm"))
def test_the_official_language_model_is_met(name):
    fixture = golden.load(name)
    lm = from_official("mamba2", fixture.weights, fixture.arguments)
    ids = fixture.io["input.ids"].long()
    prefix = fixture.config["prefix_len"]
    with torch.no_grad():
        fixture.check(lm(input_ids=ids).logits, "output.logits")
        out = lm(input_ids=ids[:, :prefix], use_cache=True)
        fixture.check(out.logits[:, -1:], "decode.prefill_last_logits")
        for i, layer in enumerate(out[CACHE].layers):
            fixture.check(layer.conv_states[0], f"decode.prefill.conv_state.{i}")
            fixture.check(layer.recurrent_states[0], f"decode.prefill.ssm_state.{i}")
        for step in range(fixture.config["n_steps"]):
            token = ids[:, prefix + step : prefix + step + 1]
            out = lm(input_ids=token, use_cache=True, **{CACHE: out[CACHE]})
            fixture.check(out.logits[:, -1:], f"decode.step{step}_logits")
        fixture.check(out[CACHE].layers[0].conv_states[0], "decode.final.conv_state.0")
        fixture.check(out[CACHE].layers[0].recurrent_states[0], "decode.final.ssm_state.0")
        greedy = lm.generate(ids[:, :prefix], attention_mask=torch.ones_like(ids[:, :prefix]), max_new_tokens=12)
    assert torch.equal(greedy[:, -12:], fixture.io["decode.greedy12_from_prefix"][:, -12:].long())


@pytest.mark.parametrize("name", golden.names("mamba2-block"))
def test_the_official_block_is_met(name):
    fixture = golden.load(name)
    args = fixture.arguments
    config = transformers.Mamba2Config(
        hidden_size=args["d_model"],
        num_hidden_layers=1,
        state_size=args["d_state"],
        head_dim=args["headdim"],
        num_heads=2 * args["d_model"] // args["headdim"],
        n_groups=args["ngroups"],
        use_bias=args["bias"],
    )
    mixer = mixer_class("mamba2")(config, layer_idx=0)
    mixer.load_state_dict(fixture.weights)
    seen = {}
    for part in ("in_proj", "norm"):
        getattr(mixer, part).register_forward_hook(lambda _, __, out, part=part: seen.update({part: out}))
    with torch.no_grad():
        fixture.check(mixer(fixture.io["input.x"]), "output")
    for part, out in seen.items():
        fixture.check(out, f"inter.{part}")


def test_reloading_padding_and_pieces(tmp_path):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 8,
        "state_size": 6,
    }
    config = transformers.Mamba2Config(**sizes, n_groups=2, pad_token_id=3, eos_token_id=2)
    Mamba2ForCausalLM(config).save_pretrained(tmp_path)
    lm = Mamba2ForCausalLM.from_pretrained(tmp_path).double().eval()
    assert all(type(layer.mixer) is mixer_class("mamba2") for layer in lm.backbone.layers)
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 3, 3, 3]])
    together = lm.generate(ids, max_new_tokens=6, do_sample=False)[:, 5:]
    for row, length in enumerate((5, 2)):
        alone = lm.generate(ids[row : row + 1, :length], max_new_tokens=6, do_sample=False)[:, length:]
        assert torch.equal(together[row], alone[0])
    whole = lm(ids[:1])
    first = lm(ids[:1, :2], use_cache=True)
    second = lm(ids[:1, 2:], use_cache=True, **{CACHE: first[CACHE]})
    assert_close("logits", second.logits, whole.logits[:, 2:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rms_norm": False}, "mamba2: rms_norm is False"),
        ({"ssm_cfg": {"layer": "Mamba1"}}, "ssm_cfg.layer other than Mamba2"),
        ({"ssm_cfg": {"rmsnorm": False}}, "ssm_cfg.rmsnorm is False, expected True"),
        ({"ssm_cfg": {"D_has_hdim": True}}, "ssm_cfg.D_has_hdim is True, expected False"),
        ({"ssm_cfg": {"d_ssm": 24}}, "ssm_cfg.d_ssm is 24, expected 48"),
        ({"n_layer": 1}, "unexpected backbone.layers.1"),
    ],
    ids=lambda v: v if isinstance(v, str) else str(v),
)
def test_what_has_no_place_is_refused(change, words):
    fixture = golden.load("mamba2-lm")
    with pytest.raises(ValueError, match=words):
        from_official("mamba2", fixture.weights, {**fixture.arguments, **change})
