# SPDX-License-Identifier: Apache-2.0
"""Model folders that cannot be used, and the one line that says why."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.models.tiny import tiny_model, tiny_processor, tiny_text_config

from .command import answered, copy_of, edit, refused, run

FILES = [
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
]


def test_no_such_folder(tmp_path):
    folder = tmp_path / "none"
    refused(run("ask", "what?", "--model", folder), "--model", str(folder), "no such folder")
    refused(run("ask", "what?", "--model", "state-spaces/mamba-130m-hf"), "nothing is downloaded")


def test_a_file_is_no_folder(red):
    refused(run("ask", "what?", "--model", red), "--model", red, "folder")


def test_bundled_model_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmamba.cli.folder.bundled_model", lambda: tmp_path / "none")
    refused(run("ask", "what?"), "bundled model", str(tmp_path / "none"), "--model")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(name, model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    (folder / name).unlink()
    refused(run("ask", "what?", "--model", folder), "--model", str(folder), name, "missing")


@pytest.mark.parametrize("name", [*FILES, "generation_config.json"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.98])
def test_truncated_file(name, kept, model_folder, tmp_path):
    file = copy_of(model_folder, tmp_path) / name
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    refused(run("ask", "what?", "--model", file.parent), "--model", name, "truncated or damaged")


def test_json_that_is_no_object(model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    (folder / "config.json").write_text("[1, 2]")
    refused(run("ask", "what?", "--model", folder), "config.json", "list", "object")


@pytest.mark.parametrize(
    "model_type, kind",
    [("mamba", "text-only"), ("mamba2", "text-only"), ("vim", "image encoder"), ("bert", ""), (None, ""), (3, "")],
)
def test_another_model(model_type, kind, tmp_path):
    """Their folders lack files of ours too, but that is not what is wrong."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    refused(run("ask", "what?", "--model", tmp_path), "config.json", repr(model_type), kind, "'vlmamba'")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"text_config": {"model_type": "mamba", "hidden_size": "wide"}}, ["hidden_size", "'wide'"]),
        ({"text_config": {"model_type": "nothing"}}, ["nothing"]),
        ({"vision_config": 3}, ["config"]),
        ({"image_token_id": 2}, ["<image>", "4", "2"]),
    ],
    ids=["wrong type", "unknown text model", "no config", "other placeholder"],
)
def test_wrong_config(changes, words, model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    edit(folder, "config.json", **changes)
    result = run("ask", "what?", "--model", folder)
    refused(result, "--model", "cannot be loaded", *words)
    assert len(result.stderr) < 600


def test_wrong_processor(model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    edit(folder, "processor_config.json", num_image_tokens=9)
    refused(run("ask", "what?", "--model", folder), "9 tokens per image", "16")
    (folder / "processor_config.json").write_text("{}")
    refused(run("ask", "what?", "--model", folder), "processor_config.json", "image_processor")
    shutil.copy(model_folder / "processor_config.json", folder)
    (folder / "tokenizer.json").write_text("{}")
    refused(run("ask", "what?", "--model", folder), "processor files")


def test_wrong_weights(model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "model.language_model.norm_f.weight"
    tensor = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(run("ask", "what?", "--model", folder), "lack", name)
    save_file(weights | {name: tensor[:5].clone()}, folder / "model.safetensors", {"format": "pt"})
    refused(run("ask", "what?", "--model", folder), name, "[5]", "[32]")


def test_placeholders_need_no_embeddings_but_words_do(tmp_path):
    processor = tiny_processor()
    tor = len(processor.tokenizer)  # the first number for which the large model has no embedding
    small = {**tiny_text_config(), "vocab_size": tor + 1}
    tiny_model(rationale_config=small, tor_token_id=tor).float().save_pretrained(tmp_path)
    processor.tokenizer.add_tokens(["<tor>"], special_tokens=True)
    processor.save_pretrained(tmp_path)
    assert answered(run("ask", "what ?", "--model", tmp_path, "--max-new-tokens", 2)).strip()
    processor.tokenizer.add_tokens(["word"])
    processor.save_pretrained(tmp_path)
    refused(run("ask", "what ?", "--model", tmp_path), "tokens up to number 23, the model 22 tokens")
