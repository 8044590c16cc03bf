# SPDX-License-Identifier: Apache-2.0
"""The VLM as a model: parts, training, saving; generation stands in test_generation.py."""

import pickle

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, SiglipVisionConfig

from tests.models.tiny import LANGUAGE_MODELS, tiny_config, tiny_model, tiny_processor, tiny_text_config
from vlmamba import VLMambaForConditionalGeneration, VLMambaModel, VLMambaProcessor
from vlmamba.data import ChatCollator, answer_labels
from vlmamba.layers.kernels import MambaMixer

IDS = torch.tensor([[5, 4, 4, 4, 4, 7, 8, 9, 6, 10, 11]])
PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scan", ["bidirectional", "cross_scan"])
@pytest.mark.parametrize("projector", ["mlp", "vss_mlp", "vss_l2"])
def test_every_connector_trains_every_parameter(projector, scan):
    model = tiny_model(projector=projector, scan=scan).train()
    loss = model(input_ids=IDS, pixel_values=PIXELS, labels=IDS).loss
    loss.backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_own_parameters_for_every_direction_of_the_connector():
    shared = tiny_model().num_parameters()
    config = {"projector_type": "vss_l2", "scan": "cross_scan", "state_size": 4, "shared_directions": False}
    assert tiny_model(projector_config=config).num_parameters() > shared


def test_a_vision_model_of_transformers_serves_as_encoder():
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    model = tiny_model(vision_config=vision)
    assert model.config.image_seq_length == 4
    assert torch.isfinite(model(input_ids=IDS, pixel_values=PIXELS).logits).all()


def test_an_inner_layer_can_be_read():
    outer, inner = tiny_model(), tiny_model(vision_feature_layer=-2)
    a, b = (m.get_image_features(PIXELS).pooler_output[0] for m in (outer, inner))
    assert a.shape == b.shape == (4, 24) and not torch.allclose(a, b)


TIMM = {
    "model_type": "timm_wrapper",
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": 32, "embed_dim": 12, "depth": 2, "num_heads": 2},
    "do_pooling": False,
}


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("vision", [None, TIMM], ids=["vim", "timm"])
def test_the_encoders_hidden_states_can_be_asked_for(vision, layer):
    model = tiny_model(vision_feature_layer=layer, **({"vision_config": vision} if vision else {})).eval()
    images = torch.randn(17, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        plain, asked = (model.get_image_features(images, output_hidden_states=asked) for asked in (False, True))
    assert plain.hidden_states is None and all(len(state) == 17 for state in asked.hidden_states)
    torch.testing.assert_close(asked.last_hidden_state, plain.last_hidden_state)


def test_a_layer_that_an_encoder_does_not_give_is_named():
    encoder = {"model_type": "vim", "hidden_size": 16, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    fused = {"model_type": "fused_vision", "encoders": [encoder], "feature_layers": [-1]}
    model = tiny_model(vision_config=fused, vision_feature_layer=-2)
    with pytest.raises(ValueError, match="the layer is -2, expected -1: the fused_vision encoder gives no others"):
        model.get_image_features(PIXELS)


def test_state_matrices_are_float32_in_a_new_model_of_half_precision():
    model = VLMambaForConditionalGeneration._from_config(tiny_config(), dtype=torch.bfloat16)
    kinds = {name.rpartition(".")[2]: p.dtype for name, p in model.named_parameters()}
    assert kinds["A_log"] == torch.float32 and kinds["D"] == torch.bfloat16
    assert torch.isfinite(model(IDS, PIXELS).logits).all()


def test_the_language_model_runs_on_our_mixer():
    mixers = [m for m in tiny_model().modules() if type(m).__name__ == "MambaMixer"]
    assert len(mixers) == 3 and all(type(m) is MambaMixer for m in mixers)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_every_language_model_trains(family):
    model = tiny_model(text_config=tiny_text_config(family)).train()
    model(input_ids=IDS, pixel_values=PIXELS, labels=IDS).loss.backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_every_projection_is_called_as_a_module():
    model, seen = tiny_model(), set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_, name=name: seen.add(name))
    model(input_ids=IDS, pixel_values=PIXELS)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert seen == linears


def test_save_and_load_round_trip(tmp_path):
    model, processor = tiny_model().float(), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert isinstance(again, VLMambaForConditionalGeneration)
    pixels = PIXELS.float()
    assert torch.equal(model(IDS, pixels).logits, again(IDS, pixels).logits)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    headless = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert isinstance(headless, VLMambaModel)
    assert torch.equal(
        headless(IDS, PIXELS.float()).last_hidden_state, model.model(IDS, PIXELS.float()).last_hidden_state
    )
    config = AutoConfig.from_pretrained(tmp_path)
    saved, kept = config.to_dict(), model.config.to_dict()
    assert all(saved[part] == kept[part] for part in ("projector_config", "image_token_id", "tie_word_embeddings"))
    assert saved["vision_config"]["state_size"] == 4 and saved["text_config"]["hidden_size"] == 24
    assert config.projector_config.scan == "cross_scan" and config.vision_config.model_type == "vim"
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, VLMambaProcessor) and loaded.num_image_tokens == 4
    text = "<|user|><image> what is this ?<|assistant|>"
    image = torch.randint(0, 255, (3, 20, 9), dtype=torch.uint8)
    for key, value in processor(images=image, text=text, return_tensors="pt").items():
        assert torch.equal(value, loaded(images=image, text=text, return_tensors="pt")[key]), key


def test_more_or_fewer_placeholders_than_features_names_both_numbers():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"3 image placeholder tokens, but the images give 4 features"):
        model(input_ids=IDS[:, 2:], pixel_values=PIXELS)
    with pytest.raises(ValueError, match=r"4 image placeholder tokens, but the images give 8 features"):
        model(input_ids=IDS, pixel_values=PIXELS.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"4 image placeholder tokens, but the images give 0 features"):
        model(input_ids=IDS)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="pass the states as cache"):
        model(input_ids=IDS, pixel_values=PIXELS, past_key_values=object())
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 5\), expected \(1, at least 11\)"):
        model(input_ids=IDS, pixel_values=PIXELS, attention_mask=torch.ones(1, 5))


def test_a_larger_image_gives_more_features():
    model = tiny_model()
    ids = torch.tensor([[5, *[4] * 16, 7, 6]])
    large = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    assert model.get_image_features(large).pooler_output[0].shape == (16, 24)
    assert torch.isfinite(model(input_ids=ids, pixel_values=large).logits).all()
    with pytest.raises(ValueError, match="4 image placeholder tokens, but the images give 16 features"):
        model(input_ids=IDS, pixel_values=large)


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(Exception, match="vision_config: a llama model gives no features of patches"):
        tiny_config(vision_config={"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1})
    with pytest.raises(Exception, match="a llama config is not supported, expected mamba, mamba2, falcon_mamba"):
        tiny_config(text_config={"model_type": "llama"})
    with pytest.raises(Exception, match="unknown scan 'nope'"):
        tiny_config(scan="nope")


def test_head_and_embeddings_can_be_apart(tmp_path):
    model = tiny_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float64)
    assert again.lm_head.weight is not again.get_input_embeddings().weight
    assert torch.equal(model(IDS, PIXELS).logits, again(IDS, PIXELS).logits)


def test_training_after_inference_mode():
    model = tiny_model().float()
    with torch.inference_mode():
        model(IDS, PIXELS.float())
    model.train()(IDS, PIXELS.float(), labels=IDS).loss.backward()


def test_a_model_can_be_pickled():
    model = tiny_model()
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(model(IDS, PIXELS).logits, again(IDS, PIXELS).logits)


def test_weights_can_stay_on_disk(tmp_path):
    tiny_model().float().save_pretrained(tmp_path / "model")
    places = {"model.vision_tower": "disk", "model.multi_modal_projector": "disk", "model.language_model": "cpu"}
    offloaded = VLMambaForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map={**places, "lm_head": "cpu"}, offload_folder=tmp_path / "off"
    )
    whole = VLMambaForConditionalGeneration.from_pretrained(tmp_path / "model")
    pixels = PIXELS.float()
    torch.testing.assert_close(offloaded(IDS, pixels).logits, whole(IDS, pixels).logits)


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload], ids=["cpu", "disk"])
def test_all_weights_can_wait_elsewhere(offload, tmp_path):
    model = tiny_model().float()
    inputs = {"input_ids": IDS, "pixel_values": PIXELS.float()}
    expected = model.generate(**inputs, max_new_tokens=5)
    folder = {"offload_dir": str(tmp_path)} if offload is disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **folder)
    assert all(p.is_meta for p in model.parameters())
    assert torch.equal(model.generate(**inputs, max_new_tokens=5), expected)


def test_hidden_states_and_tuples_are_given_as_the_config_says():
    model = tiny_model(output_hidden_states=True)
    assert len(model(IDS, PIXELS).hidden_states) == 4
    model.config.return_dict = False
    assert isinstance(model(IDS, PIXELS), tuple)


def test_embeddings_take_the_place_of_ids():
    model = tiny_model()
    embeds = model.get_input_embeddings()(IDS)
    expected = model(input_ids=IDS, pixel_values=PIXELS).logits
    torch.testing.assert_close(model(inputs_embeds=embeds, pixel_values=PIXELS).logits, expected)
    encoded = {"image": model.get_image_features(PIXELS)}
    torch.testing.assert_close(model(input_ids=IDS, mm_encoder_outputs=encoded).logits, expected)


def test_logits_to_keep():
    model = tiny_model()
    logits = model(IDS, PIXELS).logits
    torch.testing.assert_close(model(IDS, PIXELS, logits_to_keep=2).logits, logits[:, -2:])


def test_gradient_checkpointing_changes_no_gradient():
    model = tiny_model().train()
    model(IDS, PIXELS, labels=IDS, use_cache=False).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(IDS, PIXELS, labels=IDS, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_labels_cover_the_answers_and_their_ends():
    ids = torch.tensor([[5, 7, 6, 8, 9, 2, 5, 10, 6, 11, 2, 3]])
    labels = answer_labels(ids, start=6, end=2)
    assert labels.tolist() == [[-100, -100, -100, 8, 9, 2, -100, -100, -100, 11, 2, -100]]
    # an end in a question takes nothing from the answer
    assert answer_labels(torch.tensor([[5, 2, 7, 6, 8, 2]]), start=6, end=2).tolist() == [[-100] * 4 + [8, 2]]


def test_the_collator_takes_examples_without_images():
    message = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "a dog ."}]
    batch = ChatCollator(tiny_processor())([{"messages": message}, {"messages": message, "images": None}])
    assert "pixel_values" not in batch and batch["input_ids"].shape[0] == 2


def test_the_collator_makes_a_batch_that_a_tiny_model_overfits():
    processor = tiny_processor()
    examples = []
    for shade, word in ((0, "dog"), (255, "cat")):
        image = torch.full((3, 16, 16), shade, dtype=torch.uint8)
        question = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": " what is this ?"}],
        }
        answer = {"role": "assistant", "content": [{"type": "text", "text": f" a {word} ."}]}
        examples.append({"messages": [question, answer], "images": [image]})
    batch = ChatCollator(processor)(examples)
    assert (batch["labels"] >= 0).sum(1).tolist() == [4, 4]
    model = VLMambaForConditionalGeneration(tiny_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    prompt = processor.apply_chat_template([e["messages"][:1] for e in examples], add_generation_prompt=True)
    inputs = processor(images=[e["images"][0] for e in examples], text=prompt, padding=True, return_tensors="pt")
    out = model.eval().generate(**inputs, max_new_tokens=6)
    answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ["dog" in answers[0], "cat" in answers[1]] == [True, True]
