# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests import golden
from tests.close import GRADIENT, VALUE, assert_close
from vlmamba import FusionMambaConfig, FusionMambaForImageFusion, MambaDFuseConfig, MambaDFuseForImageFusion
from vlmamba.layers.fusion.losses import (
    GUIDED_LOSSES,
    dynamic_fusion_loss,
    guided_fusion_loss,
    multi_scale_ssim,
    sobel,
    ssim,
)

LOSSES = [dynamic_fusion_loss, guided_fusion_loss]


def triple(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(3, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", golden.names("fusionmamba-full"))
def test_dynamic_fusion_is_trained_as_published(name):
    fixture = golden.load(name)
    images = [fixture.io[key] for key in ("output", "input.1", "input.2")]
    parts = ("ssim_term", "in_mse_max", "grad_l1_sobel_max")
    loss, terms = dynamic_fusion_loss(*images), dynamic_fusion_loss(*images, weights=(1, 1, 1))
    for ours, key in zip((loss.total, *terms[1:]), ("total_10ssim_10in_1grad", *parts), strict=True):
        fixture.check(ours[None], f"loss.{key}")


@pytest.mark.parametrize("name", golden.names("mambadfuse-loss"))
@pytest.mark.parametrize(("kind", "prefix"), [("infrared", "vif"), ("medical", "med")])
def test_guided_fusion_is_trained_as_published(name, kind, prefix):
    fixture = golden.load(name)
    images = [fixture.io[f"input.{key}"] for key in ("fused", "A", "B")]
    loss = guided_fusion_loss(*images, **GUIDED_LOSSES[kind])
    for ours, key in zip(loss, ("total", "ssim", "intensity", "grad"), strict=True):
        fixture.check(ours[None], f"output.{prefix}.{key}")


def test_edges_of_a_step_are_counted_by_hand():
    step = torch.tensor([[0.0, 0, 1, 1]]).expand(1, 2, 4, 4)
    assert sobel(step)[:, :, 1:-1, 1:-1].unique().tolist() == [4]
    assert torch.equal(sobel(step.mT), sobel(step).mT)


def test_an_image_is_like_itself_and_less_like_another():
    image, other, _ = triple(2, 1, 20, 33)
    for similarity in (ssim, multi_scale_ssim):
        assert_close("itself", similarity(image, image), torch.ones((), dtype=image.dtype), VALUE)
        assert similarity(image, other) < 0.8
        assert_close("swapped", similarity(other, image), similarity(image, other), VALUE)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_least_where_all_images_are_one(loss):
    fused, first, second = triple(1, 1, 24, 24)
    assert_close("least", loss(first, first, first).total, torch.zeros((), dtype=first.dtype), VALUE)
    assert loss(fused, first, second).total > loss(torch.maximum(first, second), first, second).total > 0
    swapped = loss(fused, second, first)
    for name, ours, other in zip(swapped._fields, swapped, loss(fused, first, second), strict=True):
        assert_close(name, ours, other, VALUE)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [(16, 16), (17, 40)], ids=str)
def test_gradients_are_finite_and_right(loss, size):
    fused, first, second = triple(1, 1, *size)
    fused.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(fused, first, second).total, fused)
    direction, step = torch.randn_like(fused), 1e-6
    with torch.no_grad():
        ahead, behind = (loss(fused + s * direction, first, second).total for s in (step, -step))
    # a central difference is right to the roundings of float32
    slope = ((ahead - behind) / (2 * step)).float()
    assert_close("slope", slope, (gradient * direction).sum(), GRADIENT)
    blank = torch.zeros_like(fused).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(blank, blank.detach(), blank.detach()).total, blank)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss):
    images = triple(2, 1, 20, 20).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(*images).total
    assert total.dtype == torch.float32
    assert_close("loss", total, loss(*images.double()).total, VALUE)


def test_shapes_that_do_not_fit_are_one_clear_line():
    with pytest.raises(ValueError, match=r"first has shape \(1, 1, 20, 21\) and fused \(1, 1, 20, 20\), expected the"):
        guided_fusion_loss(torch.rand(1, 1, 20, 20), torch.rand(1, 1, 20, 21), torch.rand(1, 1, 20, 20))
    with pytest.raises(ValueError, match=r"fused has shape \(1, 1, 20, 15\), expected .* of at least 16"):
        dynamic_fusion_loss(*triple(1, 1, 20, 15))
    with pytest.raises(ValueError, match=r"fused has shape \(20, 20\), expected \[B, C, H, W\]"):
        guided_fusion_loss(*triple(20, 20))


def models() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_fusion_layers": 1, "num_reconstruction_layers": 1, "state_size": 2}
    return [
        FusionMambaForImageFusion(FusionMambaConfig(hidden_sizes=[8, 16], depths=[1, 1], state_size=2)),
        *(
            MambaDFuseForImageFusion(MambaDFuseConfig(hidden_size=8, fusion_loss=kind, **sizes))
            for kind in GUIDED_LOSSES
        ),
    ]


@pytest.mark.parametrize("index", range(3), ids=["fusionmamba", "infrared", "medical"])
def test_models_give_their_loss_when_asked(index, tmp_path):
    model, (first, second, _) = models()[index], triple(2, 1, 20, 24, dtype=torch.float32)
    plain = model(first, second)
    assert plain.loss is None
    out = model(pixel_values=first, pixel_values_x=second, return_loss=True)
    if index:
        expected = guided_fusion_loss(plain.fused, first, second, **GUIDED_LOSSES[model.config.fusion_loss])
    else:
        expected = dynamic_fusion_loss(plain.fused, first, second)
    assert torch.equal(out.loss, expected.total) and torch.equal(out.fused, plain.fused)
    assert torch.equal(model(first, second, return_loss=True, return_dict=False)[0], out.loss)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).train()(first, second, return_loss=True).loss
    assert torch.equal(again, out.loss)


@pytest.mark.parametrize("index", range(3), ids=["fusionmamba", "infrared", "medical"])
def test_training_on_it_lowers_the_loss(index):
    model, (first, second, _) = models()[index].train(), triple(2, 1, 16, 16, dtype=torch.float32)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(first, second, return_loss=True).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


def test_an_unknown_loss_is_an_error_at_construction():
    with pytest.raises(Exception, match="fusion_loss is 'satellite', expected one of infrared, medical"):
        MambaDFuseConfig(fusion_loss="satellite")
