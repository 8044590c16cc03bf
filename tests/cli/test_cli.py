# SPDX-License-Identifier: Apache-2.0
"""The `vlmamba` command: what it answers, and the one line it says about every mistake."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import vlmamba
from vlmamba.cli.main import app

from .conftest import QUESTION

ROOT = Path(vlmamba.__file__).parents[1]
COMMAND = [sys.executable, "-m", "vlmamba.cli.main"]


def run(*arguments: object, **options) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def answered(result: Result) -> str:
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result, *words: str, code: int = 2) -> None:
    """One line on stderr with these words, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
    for word in words:
        assert word in result.stderr


def test_a_forgotten_question_is_not_taken_for_one(model_folder):
    refused(run("ask", "nowhere.png", "--model", model_folder), "argument QUESTION", "got the file 'nowhere.png'")


def test_a_question_that_is_no_text_is_refused(model_folder, red):
    refused(run("ask", red, "what \udcff ?", "--model", model_folder), "argument QUESTION", "not valid text")


# answers


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


# conversations


def test_chat_answers_each_line(model_folder, red, blue):
    lines = f"{QUESTION}\n\n/reset\n/image {blue}\n{QUESTION}\n/quit\n{QUESTION}\n"
    result = run("chat", red, "--model", model_folder, input=lines)
    assert answered(result) == "the picture is red\nthe picture is blue\n"


def test_chat_keeps_the_turns_and_their_images(model_folder, red, blue, monkeypatch):
    from vlmamba.cli.session import Session

    seen = []
    answer = Session.answer
    monkeypatch.setattr(
        Session, "answer", lambda self, messages, *a: seen.append(messages) or answer(self, messages, *a)
    )
    answered(run("chat", red, "--model", model_folder, input=f"{QUESTION}\n/image {blue}\n{QUESTION}"))
    assert [message["role"] for message in seen[1]] == ["user", "assistant", "user"]
    first, said, second = (message["content"] for message in seen[1])
    assert first[0]["image"].getpixel((0, 0)) == (255, 0, 0) and second[0]["image"].getpixel((0, 0)) == (
        0,
        0,
        255,
    )
    assert said == [{"type": "text", "text": "the picture is red"}]


def test_chat_goes_on_after_a_mistake(model_folder, red):
    lines = f"/image none.png\n/image\n/draw\n<image>?\n/help\n/image '{red}\n/image '{red}'\n{QUESTION}\n"
    result = run("chat", "--model", model_folder, input=lines)
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    errors = result.stderr.splitlines()
    assert all(line.startswith("Error: ") for line in errors)
    words = ("none.png", "missing", "/draw", "1 <image>", "'/")
    assert len(errors) == len(words)
    for line, word in zip(errors, words, strict=True):
        assert word in line


def test_chat_refuses_a_bad_first_image(model_folder):
    refused(run("chat", "none.png", "--model", model_folder), "IMAGE", "none.png")


def test_an_answer_cannot_smuggle_a_placeholder():
    from vlmamba.cli.messages import assistant_message

    assert assistant_message("a <image> b")["content"][0]["text"] == "a  b"


# the command itself


def test_version():
    assert answered(run("--version")) == f"vlmamba {vlmamba.__version__}\n"


@pytest.mark.parametrize("command", ["", "ask", "chat", "env"])
def test_help_teaches(command):
    text = answered(run(*command.split(), "--help"))
    assert "Usage:" in text
    assert command == "env" or f"vlmamba {command or 'ask'} photo.png" in text


def test_no_arguments_show_the_help():
    assert "Commands" in answered(run())


def test_env():
    found = json.loads(answered(run("env", "--json")))
    assert found["versions"]["vlmamba"] == vlmamba.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"][0]["name"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert [backend["name"] for backend in found["backends"]] == list(vlmamba.ops.BACKENDS)
    in_use = [backend["name"] for backend in found["backends"] if "cpu" in backend["in_use"]]
    assert in_use == [vlmamba.ops.backend_for(torch.empty(0))]
    assert found["bundled_model"]["present"] == Path(found["bundled_model"]["folder"]).is_dir()


def test_env_for_people():
    text = answered(run("env"))
    for backend in vlmamba.ops.BACKENDS:
        assert f"{backend}: " in text


def test_env_tells_why_a_backend_is_missing(monkeypatch):
    from vlmamba.cli import env

    class Missing:
        available = staticmethod(lambda: False)
        reason = staticmethod(lambda: "no compiler")

    monkeypatch.setattr(env.util, "find_spec", lambda name: name == "vlmamba.ops.torch" or None)
    monkeypatch.setattr(env, "import_module", lambda name: Missing)
    backends = {backend["name"]: backend for backend in json.loads(answered(run("env", "--json")))["backends"]}
    assert backends["torch"]["available"] is False and backends["torch"]["reason"] == "no compiler"
    assert backends["reference"]["available"] is True


# mistakes


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


# model folders


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_no_such_folder(tmp_path):
    folder = tmp_path / "none"
    refused(run("ask", "what?", "--model", folder), "--model", str(folder), "no such folder")
    refused(run("ask", "what?", "--model", "state-spaces/mamba-130m-hf"), "nothing is downloaded")


def test_a_file_is_no_folder(red):
    refused(run("ask", "what?", "--model", red), "--model", red, "folder")


def test_bundled_model_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmamba.cli.folder.bundled_model", lambda: tmp_path / "none")
    refused(run("ask", "what?"), "bundled model", str(tmp_path / "none"), "--model")


FILES = [
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
]


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


def edit(folder: Path, name: str, **changes: object) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


def test_json_that_is_no_object(model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    (folder / "config.json").write_text("[1, 2]")
    refused(run("ask", "what?", "--model", folder), "config.json", "list", "object")


@pytest.mark.parametrize("model_type", ["mamba", "vim", None, 3])
def test_another_model(model_type, model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    edit(folder, "config.json", model_type=model_type)
    refused(run("ask", "what?", "--model", folder), "config.json", repr(model_type), "'vlmamba'")


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

    monkeypatch.setattr(Session, "answer", interrupt)
    for command, lines in (["ask", "what?"], None), (["chat"], "what?\n"):
        result = run(*command, "--model", model_folder, input=lines)
        assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


# real processes


def start(command: list[str], **options) -> subprocess.Popen:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | {"PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, **{**pipes, "text": True, **options})


NO_NETWORK = """
import socket, sys
def refuse(*arguments, **options):
    sys.stderr.write("NETWORK\\n")
    raise OSError("network")
socket.getaddrinfo = socket.socket.connect = refuse
from vlmamba.cli.main import app
app()
"""


def test_a_process_answers_without_the_network(model_folder, red):
    process = start([sys.executable, "-c", NO_NETWORK, "ask", red, QUESTION, "--model", str(model_folder)])
    assert process.communicate() == ("the picture is red\n", "")
    assert process.returncode == 0


def test_a_process_refuses_without_the_network(model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    process = start([sys.executable, "-c", NO_NETWORK, "ask", "what?", "--model", str(folder)])
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: --model")


def test_a_closed_pipe_is_no_error(model_folder):
    process = start([*COMMAND, "ask", QUESTION, "--model", str(model_folder)])
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo terminal")
def test_chat_on_a_terminal(model_folder, red):
    import pty

    ours, theirs = pty.openpty()
    command = [*COMMAND, "chat", red, "--model", str(model_folder)]
    # a background job of a shell hands an ignored SIGINT down
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process = start(command, text=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **terminal)
    os.close(theirs)
    screen = Screen(ours)
    try:
        assert b"/image PATH" in screen.until(b"you>")
        os.write(ours, QUESTION.encode() + b"\n")
        assert b"the picture is red\r\n" in screen.until(b"you>")
        # a signal between the prompt and the wait for keys would only count at the next key
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert b"Traceback" not in screen.until(None)
        assert process.wait(30) == 130
    finally:
        process.kill()


class Screen:
    """What a program writes to the terminal whose other side is `descriptor`."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.seen = b""

    def until(self, word: bytes | None, seconds: float = 60) -> bytes:
        """What is new up to a word; None for all until the program ends."""
        end = time.monotonic() + seconds
        while word is None or word not in self.seen:
            assert select.select([self.descriptor], [], [], max(0, end - time.monotonic()))[0], self.seen
            try:
                self.seen += os.read(self.descriptor, 4096)
            except OSError:
                # Linux says so when the program has left
                break
        found, _, self.seen = self.seen.partition(word or b"\0")
        return found
