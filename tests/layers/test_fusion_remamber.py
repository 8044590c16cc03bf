# SPDX-License-Identifier: Apache-2.0
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests import golden
from tests.close import assert_close
from vlmamba.layers.fusion.mask_loss import dice_loss, mask_loss
from vlmamba.layers.fusion.twister import ChannelScan, ImageTextCorrelation, MambaTwister, TwisterBlock, TwisterStage
from vlmamba.models.official_maps import rename_maps

HEIGHT, WIDTH, CHANNELS, TEXT, TOKENS = 3, 5, 8, 12, 4
# official keys -> ours
SCANS = [
    (r"\bss1d\.(in_proj|conv2d|out_norm|out_proj)\.", r"channels.mixer.\1."),
    (r"\bss2d\.(in_proj|conv2d|out_norm|out_proj)\.", r"space.\1."),
    (r"\bss1d\.(?=\w+$)", "channels.mixer.scans."),
    (r"\bss2d\.(?=\w+$)", "space.scans."),
]
CORRELATION = [
    (r"^vis_proj\.0\.", "image_proj."),
    (r"^text_proj\.0\.", "text_proj."),
    (r"^unsqueeze\.0\.", "conv."),
]


def filled(block: nn.Module) -> nn.Module:
    """Of weights so large that every parameter shows in the output, in float64."""
    with torch.no_grad():
        for parameter in block.double().parameters():
            parameter.normal_(std=0.4)
    return block.eval()


def maps(count: int, batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64) for _ in range(count)]


def three(fixture: golden.Golden) -> list[torch.Tensor]:
    return [fixture.io[f"input.{name}"].permute(0, 2, 3, 1) for name in ("img", "global_cond", "local_cond")]


@pytest.mark.parametrize("name", golden.names("remamber-twister"))
def test_official_outputs_of_the_twister_are_met(name):
    fixture = golden.load(name)
    given = fixture.arguments
    twister = MambaTwister(given["d_model"], given["input_res"], state_size=given["d_state"], expand=given["ssm_ratio"])
    twister.load_state_dict(rename_maps(fixture.weights, SCANS, ""))
    seen = {}
    twister.channels.mixer.register_forward_hook(lambda module, inputs, output: seen.update(tokens=output))
    fixture.check(twister(*three(fixture)).permute(0, 3, 1, 2), "output")
    fixture.check(seen["tokens"].permute(0, 3, 1, 2), "inter.ss1d")


@pytest.mark.parametrize("name", golden.names("remamber-vssblock"))
def test_official_outputs_of_the_block_are_met(name):
    fixture = golden.load(name)
    given = fixture.arguments
    block = TwisterBlock(given["dim"], resolution=given["input_res"], state_size=given["d_state"]).eval()
    weights = {k.replace("self_attention.", "mixer.").replace("ln_1.", "norm."): v for k, v in fixture.weights.items()}
    block.load_state_dict(rename_maps(weights, SCANS, ""))
    for ours, key in zip(block(*three(fixture)), ("img", "global_cond", "local_cond"), strict=True):
        fixture.check(ours.permute(0, 3, 1, 2), f"output.{key}")


@pytest.mark.parametrize("name", golden.names("remamber-corr"))
def test_official_outputs_of_the_correlation_are_met(name):
    fixture = golden.load(name)
    given = fixture.arguments
    sizes = (given["visual_dim"], given["text_dim"], given["n_text_tokens"], given["hidden_dim"])
    correlation = ImageTextCorrelation(*sizes)
    correlation.load_state_dict(rename_maps(fixture.weights, CORRELATION, ""))
    x, text = fixture.io["input.x"].permute(0, 2, 3, 1), fixture.io["input.l_feat"].mT
    fixture.check(correlation(x, text), "output")
    fixture.check(correlation(x, text, fixture.io["input.l_mask"].squeeze(-1)), "output")  # there is no padding in it


@pytest.mark.parametrize("name", golden.names("remamber-loss"))
def test_official_losses_are_met(name):
    fixture = golden.load(name)
    logits, labels = fixture.io["input.pred"], fixture.io["input.mask"]
    dice = dice_loss(logits, labels)
    fixture.check(dice.view(1), "output.dice")
    fixture.check((mask_loss(logits, labels) - dice).view(1), "output.focal_a-1_g0")
    fixture.check((mask_loss(logits, labels, alpha=0.25, gamma=2) - dice).view(1), "output.focal_a.25_g2")


def test_the_loss_of_a_mask_by_hand():
    """Two masks of four pixels: one of even odds, one that is certain and right but for a pixel."""
    logits = torch.tensor([[0.0, 0, 0, 0], [50, 50, -50, -50]])
    labels = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0]])
    dice = (1 - 3 / 5) / 2 + (1 - 3 / 4) / 2
    assert_close("dice", dice_loss(logits, labels), torch.tensor(dice))
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert_close("loss", mask_loss(logits, labels), dice + cross_entropy)
    assert mask_loss(logits.bfloat16(), labels.bool()).dtype == torch.float32
    assert torch.autograd.gradcheck(lambda x: mask_loss(x, labels), logits.double().clamp(-2, 2).requires_grad_())
    with pytest.raises(ValueError, match=r"labels has shape \(2, 2\), expected that of the logits, \(2, 4\)"):
        mask_loss(logits, labels[:, :2])


def test_the_correlation_is_of_every_position_with_every_token():
    correlation = filled(ImageTextCorrelation(CHANNELS, TEXT, TOKENS, correlation_size=6))
    (x,), text = maps(1), torch.randn(2, TOKENS, TEXT, dtype=torch.float64)
    seen = {}
    correlation.conv.register_forward_pre_hook(lambda module, inputs: seen.update(map=inputs[0]))
    correlation(x, text)
    position, token = x[1, 2, 3], text[1, 1]
    image, word = correlation.image_proj(position), correlation.text_proj(token)
    expected = (nn.functional.gelu(image) * nn.functional.gelu(word)).sum()
    assert_close("product", seen["map"][1, 1, 2, 3], expected)


def test_tokens_that_are_masked_have_no_say():
    correlation = filled(ImageTextCorrelation(CHANNELS, TEXT, TOKENS))
    (x,), text = maps(1), torch.randn(2, TOKENS, TEXT, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    other = text.clone()
    other[0, 2:] = torch.randn(2, TEXT, dtype=torch.float64)
    assert_close("masked", correlation(x, text, mask), correlation(x, other, mask))
    assert not torch.allclose(correlation(x, text), correlation(x, other))
    assert_close("no padding", correlation(x, text, mask)[1], correlation(x, text)[1])


def test_channels_are_the_tokens_of_the_channel_scan():
    scan = filled(ChannelScan(4, state_size=2))
    x = torch.randn(2, 4, 4, 7, dtype=torch.float64)
    tokens = x.permute(0, 3, 1, 2).reshape(2, 1, 7, 16)
    assert_close("as tokens", scan(x), scan.mixer(tokens).view(2, 7, 4, 4).permute(0, 2, 3, 1))
    (x,) = maps(1)
    x.requires_grad_()
    scan(x)[0, 0, 0, 0].backward()
    assert x.grad[0].abs().sum((0, 1)).all() and not x.grad[1].any()  # every channel tells the first one something


def test_the_conditions_go_on_with_their_norms_and_the_map_with_what_they_say():
    block = filled(TwisterBlock(CHANNELS, resolution=4))
    inputs = maps(3)
    x, *conditions = block(*inputs)
    for ours, given in zip(conditions, inputs[1:], strict=True):
        assert_close("condition", ours, given + block.norm(given))
    assert_close("map", x, inputs[0] + block.mixer(*map(block.norm, inputs)))
    for index, other in enumerate(maps(3)):
        changed = [*inputs[:index], other, *inputs[index + 1 :]]
        assert not torch.allclose(block(*changed)[0] - changed[0], x - inputs[0])


def stage(**options: object) -> TwisterStage:
    return filled(TwisterStage(CHANNELS, TEXT, 10, num_tokens=TOKENS, resolution=4, **options))


def sentence(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, TOKENS, TEXT, dtype=torch.float64), torch.randn(batch, 10, dtype=torch.float64)


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (9, 2), (17, 20)])
@pytest.mark.parametrize("scan", ["cross_scan", "bidirectional+local_w2"])
def test_maps_of_any_size_and_any_scan_each_image_with_its_own_sentence(size, scan):
    block = stage(scan=scan, state_size=2, correlation_size=6)
    x, (text, pooled) = torch.randn(2, *size, CHANNELS, dtype=torch.float64), sentence()
    out = block(x, text, pooled)
    assert out.shape == x.shape
    assert_close("alone", block(x[1:], text[1:], pooled[1:]), out[1:])
    assert not torch.allclose(block(x, text.flip(0), pooled), out)
    assert not torch.allclose(block(x, text, pooled.flip(0)), out)


def test_all_learn_with_activations_checkpointed_or_not():
    block, (x,), words = stage(), maps(1), sentence()
    block.reset_parameters()
    block.train()
    gradients = []
    for checkpointing in (False, True):
        for layer in block.blocks:
            layer.gradient_checkpointing = checkpointing
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        block.zero_grad()
        block(x, *words).square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in block.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.any() and torch.isfinite(gradient).all(), name
        assert_close(f"d{name}", gradients[1][name], gradient)


def test_a_sentence_of_another_shape_is_named():
    block, (x,), (text, pooled) = stage(), maps(1), sentence()
    for wrong, words in (
        ((text[:, :3], pooled), r"text has shape \(2, 3, 12\), expected \(2, 4, 12\): batch, tokens, width"),
        ((text[:1], pooled), r"text has shape \(1, 4, 12\), expected \(2, 4, 12\)"),
        ((text, pooled[:, :3]), r"pooled_text has shape \(2, 3\), expected \(2, 10\): batch, width"),
        ((text, pooled, torch.ones(2, 3)), r"attention_mask has shape \(2, 3\), expected \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=words):
            block(x, *wrong)
