# SPDX-License-Identifier: Apache-2.0
"""What holds for every vision encoder; what only one has is tested beside it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from accelerate import disk_offload
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, UperNetConfig

import vlmamba
from tests.close import GRADIENT, VALUE, assert_close
from tests.models.encoders import config_of, four_stages, model_of
from vlmamba.models import ENCODERS
from vlmamba.scans import base, steps

pytestmark = pytest.mark.parametrize("family", ENCODERS)
# square, not square, no whole number of patches, odd
SIZES = [(64, 64), (48, 80), (50, 70), (33, 41)]


def pixels(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *(size or (64, 64)))


def test_save_and_load_round_trip(tmp_path, family):
    model = model_of(family, "ForImageClassification").eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    images = pixels()
    assert torch.equal(model(images).logits, again(images).logits)
    headless = AutoModel.from_pretrained(tmp_path)
    assert isinstance(headless, getattr(vlmamba, f"{ENCODERS[family]}Model"))
    assert torch.equal(headless(images).pooler_output, model.base_model(images).pooler_output)
    assert AutoModel.from_config(model.config).config.to_dict() == model.config.to_dict()


def test_offloaded_weights_are_brought_in_where_they_are_read(tmp_path, family):
    changes = [{}, {"cascade": True}] if family == "vmamba" else [{}]
    for kind in ("ForImageClassification", "Backbone"):
        for i, change in enumerate(changes):
            model, images = model_of(family, kind, **change).eval(), pixels()
            expected = model(images, return_dict=False)[0]
            disk_offload(model, str(tmp_path / f"{kind}{i}"), execution_device=torch.device("cpu"))
            assert all(p.is_meta for p in model.parameters())
            for ours, theirs in zip(model(images, return_dict=False)[0], expected, strict=True):
                assert torch.equal(ours, theirs)


def test_what_is_kept_of_the_layers_has_gradients(family):
    model = model_of(family, "Model").train()
    out = model(pixels(), output_hidden_states=True)
    for state in out.hidden_states:
        state.retain_grad()
    out.pooler_output.square().sum().backward()
    assert all(state.grad is not None and state.grad.any() for state in out.hidden_states)


def test_input_embeddings_can_be_exchanged(family):
    for kind in ("Model", "ForImageClassification", "Backbone"):
        model, images = model_of(family, kind).eval(), pixels()
        before, old = model(images, return_dict=False)[0][0], model.get_input_embeddings()
        new = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
        model.set_input_embeddings(new)
        assert model.get_input_embeddings() is new
        assert not torch.equal(model(images, return_dict=False)[0][0], before)


def test_configs_are_changed_as_they_are_loaded(tmp_path, family):
    config = config_of(family, out_indices=[0, 2])
    config.save_pretrained(tmp_path)
    for same in (type(config)(**config.to_diff_dict()), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert same.to_dict() == config.to_dict()
    loaded = type(config).from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() and loaded.out_features == ["stem", "stage2"]
    assert AutoConfig.from_pretrained(tmp_path, out_features=["stage1"]).out_indices == [1]
    assert AutoConfig.from_pretrained(tmp_path, out_indices=[-1]).out_features == [config.stage_names[-1]]
    assert len(AutoConfig.from_pretrained(tmp_path, num_labels=7).id2label) == 7
    nested = UperNetConfig(backbone_config=config.to_dict())
    nested.save_pretrained(tmp_path)
    nested = AutoConfig.from_pretrained(tmp_path, backbone_config={"drop_path_rate": 0.5}).backbone_config
    assert nested.drop_path_rate == 0.5 and nested.out_indices == config.out_indices


def test_the_first_layers_can_be_loaded_alone(tmp_path, family):
    model = model_of(family, "Model").eval()
    if not hasattr(model.config, "num_hidden_layers"):
        pytest.skip("stages, not layers")
    model.save_pretrained(tmp_path)
    fewer = AutoModel.from_pretrained(tmp_path, num_hidden_layers=2)
    assert fewer.config.stage_names == ["stem", "stage1", "stage2"]
    images = pixels()
    expected = model(images, output_hidden_states=True).hidden_states[:3]
    for ours, theirs in zip(fewer(images, output_hidden_states=True).hidden_states, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("problem", "count", "labels"),
    [
        ("single_label_classification", 5, torch.tensor([1, 4])),
        ("multi_label_classification", 5, torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])),
        ("regression", 1, torch.tensor([0.5, -1])),
        ("regression", 5, torch.arange(10.0).view(2, 5)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_losses_are_what_the_problem_type_says(family, problem, count, labels):
    model = model_of(family, "ForImageClassification", problem_type=problem, num_labels=count).eval()
    out = model(pixels(), labels=labels)
    expected = {
        "single_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
        "regression": F.mse_loss,
    }[problem]
    assert_close("loss", out.loss, expected(out.logits if count > 1 else out.logits[:, 0], labels).double())


def test_another_number_of_classes_keeps_the_encoder(tmp_path, family):
    model = model_of(family, "ForImageClassification").eval()
    model.save_pretrained(tmp_path)
    other, info = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    images = pixels()
    assert other(images).logits.shape == (2, 9)
    assert torch.equal(other.base_model(images).pooler_output, model.base_model(images).pooler_output)


def test_every_parameter_is_initialised_and_trains(family):
    torch.manual_seed(0)
    with torch.device("meta"):
        model = model_of(family, "ForImageClassification")
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    model.apply(lambda module: setattr(module, "_is_hf_initialized", False))
    model.init_weights()
    assert not [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    model = model_of(family, "ForImageClassification").train()
    model(pixels(), labels=torch.tensor([1, 4])).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_image_size_gives_what_the_config_says(family, size):
    model = model_of(family, "Model").eval()
    config = model.config
    out = model(pixels(*size), output_hidden_states=True)
    height, width = config.grid(*size)
    patches = model.patch_tokens(out.last_hidden_state, (height, width))
    assert patches.shape == (2, height * width, config.hidden_size)
    assert out.pooler_output.shape == (2, config.pooled_size)
    assert [state.shape[-1] for state in out.hidden_states] == config.stage_widths
    assert model(pixels(*size)).hidden_states is None
    some = model(pixels(*size), output_hidden_states=[1, -1, 99]).hidden_states
    assert [state is not None for state in some] == [i in (1, len(some) - 1) for i in range(len(out.hidden_states))]
    as_tuple = model(pixels(*size), return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == out.last_hidden_state.shape


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_backbone_gives_maps_of_the_channels_and_strides_it_says(family, size):
    names = config_of(family).stage_names
    backbone = model_of(family, "Backbone", out_features=names).eval()
    out = backbone(pixels(*size), output_hidden_states=True)
    assert len(out.feature_maps) == len(names) == len(out.hidden_states)
    for feature_map, channels, stride in zip(out.feature_maps, backbone.channels, backbone.strides, strict=True):
        assert feature_map.shape[:2] == (2, channels)
        for side, pixel_side in zip(feature_map.shape[2:], size, strict=True):
            assert abs(side - pixel_side / stride) <= 1, f"{side} positions of stride {stride} over {pixel_side} pixels"
    assert tuple(out.feature_maps[-1].shape[2:]) == tuple(backbone.config.grid(*size))
    assert backbone(pixels(*size)).hidden_states is None
    assert backbone(pixels(*size), output_hidden_states=1).hidden_states[1].shape == out.hidden_states[1].shape


def test_a_backbone_takes_a_classifiers_weights(tmp_path, family):
    model = model_of(family, "ForImageClassification").eval()
    model.save_pretrained(tmp_path)
    kind = getattr(vlmamba, f"{ENCODERS[family]}Backbone")
    backbone, info = kind.from_pretrained(tmp_path, out_indices=[1, -1], output_loading_info=True)
    assert all("hidden_states_norms" in key for key in info["missing_keys"])
    images = pixels()
    expected = model(images, output_hidden_states=True).hidden_states[-1]
    found = backbone.eval()(images, output_hidden_states=True).hidden_states[-1]
    grid = backbone.config.grid(64, 64)
    assert torch.equal(found.flatten(2).transpose(1, 2), model.base_model.patch_tokens(expected, grid))
    backbone.save_pretrained(tmp_path / "backbone")
    again = kind.from_pretrained(tmp_path / "backbone")
    assert again.out_indices == backbone.out_indices
    assert torch.equal(again(images).feature_maps[-1], backbone(images).feature_maps[-1])
    assert isinstance(AutoBackbone.from_config(four_stages(family)), kind)


def test_plain_encoders_make_a_pyramid(family):
    config = four_stages(family)
    backbone = AutoBackbone.from_config(config).eval()
    sides = [feature_map.shape[-1] for feature_map in backbone(pixels()).feature_maps]
    assert sides == sorted(sides, reverse=True) and sides[0] >= 8 * sides[-1] / 2
    assert [round(64 / stride) for stride in backbone.strides] == sides


def test_gradient_checkpointing_changes_nothing(family):
    model = model_of(family, "ForImageClassification").train()
    images, labels = pixels(), torch.tensor([1, 4])
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable()
    for one in (model, again):
        one(images, labels=labels).loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert_close(name, other.grad, parameter.grad, GRADIENT)
    for (name, buffer), other in zip(model.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(buffer, other[1]), name


def test_drop_path_rises_and_acts_in_training_alone(family):
    model = model_of(family, "Model", drop_path_rate=0.9)
    rates = [module.p for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    assert rates[0] == 0 and rates[-1] == 0.9 and rates == sorted(rates)
    images = pixels()
    outputs = [model.train()(images).pooler_output for _ in range(8)]
    assert not all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert torch.equal(model.eval()(images).pooler_output, model(images).pooler_output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_the_state_matrix_in_float32(tmp_path, family, dtype):
    model_of(family, "ForImageClassification").save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    for model in (loaded, AutoModelForImageClassification.from_config(config_of(family), dtype=dtype)):
        kinds = {name.rpartition(".")[2]: p.dtype for name, p in model.named_parameters()}
        assert kinds["A_log"] == torch.float32 and kinds["D"] == dtype
        assert torch.isfinite(model(pixels()).logits).all()


def test_autocast_trains(family):
    model = model_of(family, "ForImageClassification").train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(pixels(), labels=torch.tensor([1, 4])).loss
    loss.backward()
    assert not [name for name, p in model.named_parameters() if not torch.isfinite(p.grad).all()]
    model.eval()
    images, expected = pixels(), model.double()
    reference = expected(images.double()).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert_close("logits", model.float()(images).logits.bfloat16(), reference, VALUE)


def test_a_batch_equals_its_items(family):
    model = model_of(family, "ForImageClassification").double().eval()
    images = pixels(batch=3).double()
    singles = torch.cat([model(one[None]).logits for one in images])
    assert_close("logits", model(images).logits, singles, VALUE)


def test_images_of_a_wrong_shape_are_named(family):
    for kind in ("ForImageClassification", "Backbone"):
        model = model_of(family, kind)
        for shape in ((1, 1, 64, 64), (3, 64, 64), (1, 3, 64, model.config.least_side - 1)):
            with pytest.raises(ValueError, match=r"pixel_values has shape .* expected \[batch, 3, H, W\] with H and W"):
                model(torch.zeros(shape))


def test_the_least_side_is_enough(family):
    model = model_of(family, "Model").eval()
    least = model.config.least_side
    assert torch.isfinite(model(pixels(least, least)).pooler_output).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": [64]}, r"image_size is \[64\]"),
        ({"image_size": 0}, "image_size is 0"),
        ({"num_channels": 0}, "num_channels is 0"),
        ({"patch_size": 0}, "patch_size"),
        ({"state_size": "wide"}, "state_size"),
        ({"out_features": ["stage9"]}, "stage9"),
    ],
    ids=str,
)
def test_what_cannot_be_is_an_error_at_construction(family, change, words):
    if next(iter(change)) == "patch_size" and not hasattr(config_of(family), "patch_size"):
        pytest.skip("the stem of this family has no patches")
    with pytest.raises(Exception, match=words):
        config_of(family, **change)


def test_it_compiles_without_graph_breaks_and_exports_for_any_batch(monkeypatch, family):
    monkeypatch.setattr(base, "_parts", {})  # as in a new process: nothing ran before it is compiled
    monkeypatch.setattr(steps, "_made", {})
    torch._dynamo.reset()  # graphs of other families, whose `forward` is the same
    model = model_of(family, "Model").eval()
    images = pixels(48, 64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(images).pooler_output
    torch.testing.assert_close(compiled, model(images).pooler_output)
    shapes = {"pixel_values": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(model, (images,), dynamic_shapes=shapes).module()
    for batch in (1, 3):
        images = pixels(48, 64, batch=batch)
        torch.testing.assert_close(exported(images).pooler_output, model(images).pooler_output)


def test_lora_acts_on_every_projection(family):
    model = model_of(family, "ForImageClassification").eval()
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "classifier"]
    before = model(pixels(batch=1)).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=linears, init_lora_weights=False))
    out = adapted(pixels(batch=1)).logits
    assert not torch.allclose(out, before)
    out.square().sum().backward()
    adapters = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * len(linears)
    assert not [name for name, p in adapters.items() if p.grad is None or not p.grad.any()]


def test_four_images_are_learned(family):
    torch.manual_seed(0)
    model = model_of(family, "ForImageClassification").train()
    images, labels = pixels(32, 32, batch=4), torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
