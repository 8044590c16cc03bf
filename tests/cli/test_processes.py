# SPDX-License-Identifier: Apache-2.0
"""The command in processes of its own: networks, pipes, terminals."""

import os
import select
import signal
import sys
import time

import pytest

from .command import COMMAND, copy_of, start
from .conftest import QUESTION

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
