# SPDX-License-Identifier: Apache-2.0
"""`vlmamba ask`: answers about pictures of every kind."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlmamba

from .command import answered, copy_of, refused, run
from .conftest import QUESTION


def test_ask_sees_the_picture(model_folder, red, blue):
    for path, colour in ((red, "red"), (blue, "blue")):
        assert answered(run("ask", path, QUESTION, "--model", model_folder)) == f"the picture is {colour}\n"


def test_ask_streams_word_by_word(model_folder, red, monkeypatch):
    pieces = []
    monkeypatch.setattr("vlmamba.cli.ask.write", pieces.append)
    answered(run("ask", red, QUESTION, "--model", model_folder))
    assert pieces == ["the", " picture", " is", " red", "\n"]


def test_ask_json(model_folder, blue):
    result = json.loads(answered(run("ask", blue, QUESTION, "--json", "--model", model_folder)))
    assert list(result) == [
        "answer",
        "question",
        "images",
        "model",
        "device",
        "dtype",
        "backend",
        "tokens",
        "seconds",
    ]
    assert result["answer"] == "the picture is blue"
    assert result["question"] == QUESTION
    assert result["images"] == [blue]
    assert result["model"] == str(model_folder)
    assert result["device"] == "cuda:0" if torch.cuda.is_available() else "cpu"
    assert result["dtype"] == "float32"
    assert result["backend"] in vlmamba.ops.BACKENDS
    # four words and the end
    assert result["tokens"] == 5
    assert result["seconds"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(dtype, model_folder, red):
    arguments = ["ask", red, QUESTION, "--json", "--model", model_folder, "--device", "cpu", "--dtype", dtype]
    result = json.loads(answered(run(*arguments)))
    assert (result["answer"], result["dtype"], result["device"]) == ("the picture is red", dtype, "cpu")


def test_max_new_tokens(model_folder, red):
    assert answered(run("ask", red, QUESTION, "--model", model_folder, "--max-new-tokens", 2)) == "the picture\n"


def test_a_question_without_images(model_folder):
    result = json.loads(answered(run("ask", QUESTION, "--json", "--model", model_folder)))
    assert result["images"] == []


def test_placeholders_are_put_in_front(model_folder, red, blue):
    put = answered(run("ask", red, blue, QUESTION, "--json", "--model", model_folder))
    written = answered(run("ask", red, blue, f"<image><image>{QUESTION}", "--json", "--model", model_folder))
    assert json.loads(put)["answer"] == json.loads(written)["answer"]


def test_placeholders_keep_their_places(red, blue):
    from vlmamba.cli.messages import read_images, user_message

    images = read_images([red, blue])
    content = user_message("is <image> like <image>?", images)["content"]
    assert [part.get("text") or part["image"] for part in content] == [
        "is ",
        images[0],
        " like ",
        images[1],
        "?",
    ]


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (10000, 20), (20, 10000)])
def test_odd_sizes(size, model_folder, tmp_path):
    path = tmp_path / "odd.png"
    Image.new("RGB", size, "blue").save(path)
    assert answered(run("ask", path, QUESTION, "--model", model_folder)).endswith("\n")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "F"])
def test_image_modes(mode, model_folder, tmp_path):
    path = tmp_path / "image.tiff"
    Image.new(mode, (20, 20)).save(path)
    assert answered(run("ask", path, QUESTION, "--model", model_folder)).startswith("the picture is")


def test_sharded_weights(model_folder, red, tmp_path):
    model = vlmamba.VLMambaForConditionalGeneration.from_pretrained(model_folder)
    folder = copy_of(model_folder, tmp_path)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert answered(run("ask", red, QUESTION, "--model", folder)) == "the picture is red\n"
    shards[0].unlink()
    refused(run("ask", red, QUESTION, "--model", folder), shards[0].name, "missing")


def test_nothing_is_written(model_folder, red, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path), snapshot(model_folder)
    answered(run("ask", red, QUESTION, "--model", model_folder))
    refused(run("ask", "none.png", QUESTION, "--model", model_folder))
    assert (snapshot(tmp_path), snapshot(model_folder)) == before


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
