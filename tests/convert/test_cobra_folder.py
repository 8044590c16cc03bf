# SPDX-License-Identifier: Apache-2.0
"""A published Cobra checkpoint, timm's encoders and GPT-NeoX's tokenizer to a folder that answers; all tiny."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)

from tests import golden
from tests.cli.command import answered, refused, run
from tests.models.test_cobra import encoder, parts
from vlmamba import CobraImageProcessor, VLMambaProcessor, from_official
from vlmamba.convert import convert_checkpoint
from vlmamba.data import ChatCollator

FIXTURE = golden.load("cobra-vlm")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What a user has: the checkpoint, its configuration, two encoders, a tokenizer, a picture."""
    folder = tmp_path_factory.mktemp("cobra")
    torch.save({"model": parts(FIXTURE.weights), "optimizer": {}}, folder / "latest-checkpoint.pt")
    (folder / "config.json").write_text(json.dumps({"model": FIXTURE.arguments, "run_id": "cobra"}))
    save_file(encoder(FIXTURE.weights, "siglip"), folder / "siglip.safetensors")
    torch.save(encoder(FIXTURE.weights, "dino"), folder / "dino.pth")
    words = ["<|endoftext|>", "<|user|>", "<|assistant|>", "what", "is", "this", "?"]
    words += [f"w{index}" for index in range(FIXTURE.arguments["vocab"] - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    Image.new("RGB", (70, 45), (200, 30, 30)).save(folder / "red.png")
    return folder


def options(sources) -> list:
    vision = ["--vision", sources / "siglip.safetensors", "--vision", sources / "dino.pth"]
    return [*vision, "--tokenizer", sources / "tokenizer.json", "--arguments", sources / "config.json"]


@pytest.fixture(scope="module")
def folder(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "cobra"
    said = answered(run("convert", "cobra", sources / "latest-checkpoint.pt", out, *options(sources)))
    assert said.startswith("VLMambaForConditionalGeneration, 0.1 M parameters -> ")
    return out


def test_the_folder_holds_the_official_model(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    official = from_official("cobra", FIXTURE.weights, FIXTURE.arguments)
    assert all(map(torch.equal, official.state_dict().values(), model.state_dict().values()))
    assert (model.generation_config.eos_token_id, model.generation_config.max_new_tokens) == (0, 512)


def test_the_processor_is_complete(folder, sources):
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, VLMambaProcessor)
    assert isinstance(processor.image_processor, CobraImageProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), CobraImageProcessor)
    tokenizer = processor.tokenizer
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, processor.image_token_id) == (0, 0, 61)
    content = [{"type": "text", "text": "what is this ?"}, {"type": "image", "image": Image.open(sources / "red.png")}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 6, 56, 56)
    text = tokenizer.convert_tokens_to_ids(["<|user|>", "what", "is", "this", "?", "<|endoftext|>", "<|assistant|>"])
    assert inputs["input_ids"].tolist() == [[61] * 16 + text]


def test_pipeline_and_command_answer_alike(folder, sources):
    ask = pipeline("image-text-to-text", model=str(folder))
    image = {"type": "image", "image": Image.open(sources / "red.png")}
    chat = [{"role": "user", "content": [image, {"type": "text", "text": "what is this ?"}]}]
    found = ask(text=chat, max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    said = answered(
        run(
            "ask", sources / "red.png", "what is this ?", "--model", folder, "--max-new-tokens", 8, "--dtype", "float32"
        )
    )
    assert said.split() == found.split() and said.strip()


def test_a_base_language_model_has_its_own_prompt(sources, tmp_path):
    convert_checkpoint(
        "cobra",
        sources / "latest-checkpoint.pt",
        tmp_path,
        {**FIXTURE.arguments, "llm_backbone_id": "mamba-2.8b-slimpj", "image_resize_strategy": "letterbox"},
        vision=[sources / "dino.pth", sources / "siglip.safetensors"],
        tokenizer=sources,
    )
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False) == "In: Why?\nOut: "


def test_what_is_missing_costs_one_line(sources, tmp_path):
    checkpoint, out = sources / "latest-checkpoint.pt", tmp_path / "out"
    tokenizer = ["--tokenizer", sources / "tokenizer.json"]
    words = ["--arguments", sources / "config.json"]
    hub = "timm/vit_large_patch14_reg4_dinov2.lvd142m and of timm/vit_so400m_patch14_siglip_384.webli"
    refused(run("convert", "cobra", checkpoint, out, *words, *tokenizer), hub, "--vision FILE")
    one = ["--vision", sources / "dino.pth"]
    refused(run("convert", "cobra", checkpoint, out, *words, *tokenizer, *one), "of timm/vit_so400m_patch14_siglip")
    refused(run("convert", "cobra", checkpoint, out, *words), "EleutherAI/gpt-neox-20b", "--tokenizer FILE")
    picture = ["--tokenizer", sources / "red.png"]
    refused(run("convert", "cobra", checkpoint, out, *words, *picture), "red.png", "it is no tokenizer.json")
    nothing = ["--tokenizer", sources / "no.json"]
    refused(run("convert", "cobra", checkpoint, out, *words, *nothing), "no.json", "there is no such file")
    refused(run("convert", "cobra", checkpoint, out, *tokenizer), "the projector is that of none of cobra-3b")
    refused(run("convert", "cobra", checkpoint, out, "--preset", "cobra+9b", *tokenizer), "cobra has no preset")
    larger = json.dumps({**FIXTURE.arguments, "vocab": 62})
    misfit = run("convert", "cobra", checkpoint, out, *options(sources)[:-2], "--arguments", larger)
    refused(misfit, "tokenizer: it has 61 tokens before <image>, the language model 62")
    refused(run("convert", "vim", checkpoint, out, *tokenizer), "tokenizer is given, but vim checkpoints need none")
    assert not out.exists()
    assert {"cobra-3b", "cobra-ldpnet-3b"} <= set(answered(run("convert", "cobra", "--list")).split())


def test_answers_are_not_looked_for_by_a_token_that_the_tokenizer_lacks(folder):
    processor = AutoProcessor.from_pretrained(folder)
    ChatCollator(processor)
    vocabulary = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "<image>": 1}, unk_token="<|endoftext|>"))
    processor.tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary)
    with pytest.raises(ValueError, match=r"no token <\|assistant\|>, as Cobra's"):
        ChatCollator(processor)
