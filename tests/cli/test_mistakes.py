# SPDX-License-Identifier: Apache-2.0
"""The one line that the command says about a mistake in its arguments."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from .command import refused, run


def test_a_forgotten_question_is_not_taken_for_one(model_folder):
    refused(run("ask", "nowhere.png", "--model", model_folder), "argument QUESTION", "got the file 'nowhere.png'")


def test_a_question_that_is_no_text_is_refused(model_folder, red):
    refused(run("ask", red, "what \udcff ?", "--model", model_folder), "argument QUESTION", "not valid text")


@pytest.mark.parametrize("question", ["", "  ", "\n\t"])
def test_blank_question(question, red, model_folder):
    refused(run("ask", red, question, "--model", model_folder), "QUESTION", "blank")


def test_no_question(red):
    refused(run("ask"), "QUESTION", "missing")
    refused(run("ask", red), "QUESTION", red)


@pytest.mark.parametrize("placeholders, given", [(1, 0), (2, 1), (1, 2)])
def test_placeholders_must_match(placeholders, given, red, model_folder):
    result = run("ask", *[red] * given, "<image>" * placeholders + "what?", "--model", model_folder)
    refused(result, f"{placeholders} <image>", f"{given} image(s)")


def bad_images(folder: Path) -> dict[str, Path]:
    """Files that are no images, by what is wrong with them."""
    whole = folder / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    files = {name: folder / f"{name}.png" for name in ("empty", "truncated", "not an image")}
    files["empty"].touch()
    files["truncated"].write_bytes(whole.read_bytes()[:1000])
    files["not an image"].write_text("text")
    return files | {"no such file": folder / "none.png", "directory": folder}


@pytest.mark.parametrize("problem", ["empty", "truncated", "not an image", "no such file", "directory"])
def test_bad_image(problem, tmp_path, model_folder):
    path = bad_images(tmp_path)[problem]
    refused(run("ask", path, "what?", "--model", model_folder), "IMAGE", str(path), problem)


@pytest.mark.parametrize("factor", [1.5, 3])
def test_decompression_bomb(factor, red, model_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(1600 / factor))
    refused(run("ask", red, "what?", "--model", model_folder), red, "1600 pixels", str(int(1600 / factor)))


def test_unreadable_image(red, model_folder, monkeypatch):
    from vlmamba.data import images

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "open", denied, raising=False)
    refused(run("ask", red, "what?", "--model", model_folder), red, "permission")


def test_a_file_name_cannot_break_the_line(tmp_path, model_folder):
    refused(run("ask", tmp_path / "a\nb.png", "what?", "--model", model_folder), "a\\nb.png")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "CPU", "cuda:", "tpu", "meta"])
def test_unknown_device(device, model_folder):
    refused(run("ask", "what?", "--device", device, "--model", model_folder), "--device", repr(device), "cuda:N")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_absent_device(device, model_folder):
    refused(run("ask", "what?", "--device", device, "--model", model_folder), "--device", device, "no CUDA")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")
def test_absent_mps(model_folder):
    refused(run("ask", "what?", "--device", "mps", "--model", model_folder), "--device", "no MPS")


@pytest.mark.parametrize("dtype", ["float", "int8", "", "float64"])
def test_unknown_dtype(dtype, model_folder):
    refused(run("ask", "what?", "--dtype", dtype, "--model", model_folder), "--dtype", repr(dtype), "bfloat16")


@pytest.mark.parametrize("number", ["0", "-3", "many", "1.5", ""])
def test_max_new_tokens_must_be_positive(number, model_folder):
    result = run("ask", "what?", "--max-new-tokens", number, "--model", model_folder)
    refused(result, "--max-new-tokens", repr(number), "1 or more")


def test_unknown_backend(model_folder):
    for command in (["ask", "what?", "--model", model_folder], ["env"]):
        refused(run(*command, env={"VLMAMBA_BACKEND": "magic"}), "VLMAMBA_BACKEND", "'magic'", "torch")


@pytest.mark.parametrize("arguments", [["sing"], ["ask", "--loud"], ["--loud"], ["ask", "what?", "--model"]])
def test_unknown_words(arguments):
    refused(run(*arguments), arguments[-1])


def test_failures_that_nobody_foresaw(model_folder, monkeypatch):
    from vlmamba.cli.session import Session

    def fail(*arguments, **options):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(Session, "answer", fail)
    refused(run("ask", "what?", "--model", model_folder), "RuntimeError: out of memory", code=1)
    result = run("ask", "what?", "--model", model_folder, env={"VLMAMBA_DEBUG": "1"})
    assert isinstance(result.exception, RuntimeError)


def test_interrupt(model_folder, monkeypatch):
    from vlmamba.cli.session import Session

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "generate", interrupt)
    for command, lines in (["ask", "what?"], None), (["chat"], "what?\n"):
        result = run(*command, "--model", model_folder, input=lines)
        assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")
