# SPDX-License-Identifier: Apache-2.0
"""`transformers serve` answers OpenAI-style requests about pictures as generate() does."""

import base64
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmamba.assets import bundled_model

for package in ("openai", "fastapi", "uvicorn", "pydantic"):
    pytest.importorskip(package, reason="transformers serve needs transformers[serving]")

from openai import OpenAI  # noqa: E402

ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
NEW = 24


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--trust-remote-code", "--device", "cpu", "--port", str(port)]
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules")}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*SERVE, str(bundled_model()), *options], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            while not _is_up(port):
                assert server.poll() is None, (folder / "log").read_text()[-3000:]
                time.sleep(0.2)
            yield OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0, timeout=120)
        finally:
            server.terminate()
            server.wait()


def _is_up(port: int) -> bool:
    try:
        return urlopen(f"http://localhost:{port}/health", timeout=5).status == 200
    except (URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def local():
    model = AutoModelForImageTextToText.from_pretrained(bundled_model()).eval()
    return model, AutoProcessor.from_pretrained(bundled_model())


def picture(name: str) -> dict:
    data = base64.b64encode((ROOT / "examples" / f"{name}.png").read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


CHATS = {
    "one image": [{"role": "user", "content": [picture("castle"), text("What is to the left of the castle?")]}],
    "turns": [
        {"role": "user", "content": [picture("castle"), text("Is there a castle in the picture?")]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [text("And here: "), picture("truck"), text("what is this?")]},
    ],
    "text only": [{"role": "user", "content": "What is this?"}],
}


def ask(client, chat: list, **options):
    """Sampling is off unless asked for."""
    options = {"temperature": 0, "max_tokens": NEW, **options}
    return client.chat.completions.create(model=str(bundled_model()), messages=chat, **options)


@torch.inference_mode()
def answer(local, chat: list) -> tuple[str, int, int]:
    """What generate() answers, with the numbers of tokens of prompt and answer."""
    model, processor = local
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, length:]
    return processor.decode(out, skip_special_tokens=True), length, len(out)


@pytest.mark.parametrize("name", CHATS)
def test_the_server_answers_as_generate(client, local, name):
    words, prompt, new = answer(local, CHATS[name])
    whole = ask(client, CHATS[name])
    assert whole.choices[0].message.content == words
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, new)
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, CHATS[name], stream=True)]
    assert "".join(pieces).strip() == words.strip() and sum(map(bool, pieces)) > 1


def test_requests_at_one_time_wait_for_each_other(client, local):
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda name: ask(client, CHATS[name]).choices[0].message.content, [*CHATS] * 2))
    assert given == [answer(local, chat)[0] for chat in CHATS.values()] * 2
