# SPDX-License-Identifier: Apache-2.0
"""`vlmamba serve-demo` in a browser: a server, a page, and what a person does there.

Draws the page for the README: python -m tests.cli.demo_browser docs/demo.png
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
READY = "The page is ready at "
# milliseconds: a busy machine answers late
PATIENCE = 30_000


@contextmanager
def served(*options: object) -> Iterator[str]:
    """The address of a server on a free port; it must end cleanly by Ctrl-C, and leave no uploads behind."""
    command = [sys.executable, "-m", "vlmamba.cli.main", "serve-demo", "--port", "0", *map(str, options)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        environment = os.environ | {"TMPDIR": folder, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            line = process.stdout.readline()
            assert line.startswith(READY), line
            yield line.removeprefix(READY).split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        errors.seek(0)
        complaints = [line for line in errors if line.startswith("Error:")]
        end = (code, process.stdout.read(), complaints, list(Path(folder).glob("vlmamba-demo-*")))
        assert end == (0, "", [], []), end


@contextmanager
def browser() -> Iterator["Visits"]:
    """A browser without a past."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS.split(), viewport={"width": 760, "height": 860}
        )
        context.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield Visits(context)
        context.close()


class Visits:
    """Pages of a browser, and what they asked of others or complained about.

    Attributes:
        complaints: errors and warnings on the consoles, and answers that are errors.
        strangers: addresses other than the server's that were asked.
    """

    def __init__(self, context: object):
        self.context = context
        self.complaints: list[str] = []
        self.strangers: list[str] = []

    def open(self, address: str) -> "Demo":
        """A new page, ready for a question."""
        page = self.context.new_page()
        page.on("console", lambda line: line.type in ("error", "warning") and self.complaints.append(line.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("response", lambda answer: answer.status >= 400 and self.complaints.append(answer.url))
        own = (f"{address}/", "data:", "blob:")
        page.on("request", lambda asked: asked.url.startswith(own) or self.strangers.append(asked.url))
        page.goto(address)
        return Demo(page)


class Demo:
    """What a person sees and does in a page."""

    def __init__(self, page: Page):
        self.page = page
        self.box = page.get_by_role("textbox", name="Question")
        self.send = page.get_by_role("button", name="Submit")
        self.stop = page.get_by_role("button", name="Stop")
        self.problem = page.get_by_role("alert")
        expect(self.box).to_be_editable()

    @property
    def answers(self) -> Locator:
        """The answers, from first to last."""
        return self.page.get_by_test_id("bot")

    def ask(self, question: str, *pictures: Path) -> None:
        """Add pictures and send a question."""
        if pictures:
            self.page.locator("input[type=file]").first.set_input_files(pictures)
            expect(self.page.get_by_label("File thumbnail")).to_have_count(len(pictures))
        self.box.fill(question)
        self.box.press("Enter")

    def answer(self, count: int) -> str:
        """The answer of this number, when it is complete."""
        expect(self.answers).to_have_count(count)
        expect(self.send).to_be_visible()
        return self.answers.nth(count - 1).inner_text()


def draw(path: str) -> None:
    """A conversation, as a picture."""
    with browser() as visits, served() as address:
        demo = visits.open(address)
        demo.page.set_viewport_size({"width": 760, "height": 900})
        demo.ask("What is to the left of the castle?", EXAMPLES / "castle.png")
        demo.answer(1)
        demo.ask("Is there a castle in the picture?")
        demo.answer(2)
        demo.page.screenshot(path=path)


if __name__ == "__main__":
    draw(*sys.argv[1:])
