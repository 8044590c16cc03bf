# SPDX-License-Identifier: Apache-2.0
"""`vlmamba serve-demo` as a person meets it: a real server, the bundled model, a real browser."""

import json
import shutil

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

import httpx  # noqa: E402
from playwright.sync_api import expect  # noqa: E402

from vlmamba.assets import bundled_model  # noqa: E402

from .command import answered, run  # noqa: E402
from .demo_browser import CHROMIUM, EXAMPLES, PATIENCE, browser, served  # noqa: E402

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")

LEFT = "What is to the left of the castle?"

# milliseconds: nobody mends a question in less, and the page takes none in while it shows what was wrong
MENDING = 1000


@pytest.fixture(scope="module")
def visits():
    with browser() as visits:
        yield visits


@pytest.fixture(scope="module")
def address(visits):
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def endless(visits, tmp_path_factory):
    """A server whose model does not know when an answer ends."""
    folder = shutil.copytree(bundled_model(), tmp_path_factory.mktemp("models") / "endless")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<pad>"}))
    with served("--model", folder, "--max-new-tokens", 100_000) as address:
        yield address


def test_a_conversation(visits, address):
    demo = visits.open(address)
    expect(demo.page).to_have_title("Ask a picture")
    expect(demo.page.locator(".about")).to_contain_text("emoji-tiny · 5.1 million parameters")
    demo.ask(LEFT, EXAMPLES / "castle.png")
    castle = str(EXAMPLES / "castle.png")
    assert f"{demo.answer(1)}\n" == answered(run("ask", castle, LEFT))
    demo.ask("Is there a castle in the picture?")
    assert demo.answer(2) == "Yes."
    expect(demo.problem).to_have_count(0)
    # more pictures, in a later turn
    demo.ask("Is <image> or <image> a truck?", EXAMPLES / "truck.png", EXAMPLES / "whale.png")
    assert demo.answer(3)
    expect(demo.page.get_by_label("chatbot conversation").locator("img[src*='.png']")).to_have_count(3)
    assert (visits.complaints, visits.strangers) == ([], [])


def test_what_cannot_be_asked_is_a_sentence_and_can_be_mended(visits, address, tmp_path):
    fake = tmp_path / "notes.png"
    fake.write_text("no picture")
    demo = visits.open(address)
    demo.ask("What is this?", fake)
    expect(demo.problem).to_have_text("Cannot read image 'notes.png': it is not an image, or a damaged one.")
    expect(demo.box).to_have_value("What is this?")
    demo.page.get_by_label("Remove file").click()
    demo.page.wait_for_timeout(MENDING)
    demo.ask("")
    expect(demo.problem).to_have_text("The question is missing.")
    demo.page.wait_for_timeout(MENDING)
    demo.ask("Is there <image>?")
    expect(demo.problem).to_contain_text("The question has 1 <image> placeholder(s)")
    demo.page.wait_for_timeout(MENDING)
    demo.ask("Is there a dog?")
    assert demo.answer(1)
    expect(demo.problem).to_have_count(0)
    demo.page.get_by_role("button", name="Undo").click()
    expect(demo.box).to_have_value("Is there a dog?")
    expect(demo.answers).to_have_count(0)


def test_only_uploads_are_looked_at(address):
    """Whoever speaks to the server without the page cannot name files of its machine."""
    config = httpx.get(f"{address}/config").json()
    message = {"text": "What?", "files": [{"path": str(EXAMPLES / "truck.png"), "meta": {"_type": "gradio.FileData"}}]}
    shown = {"role": "user", "content": [{"type": "file", "file": message["files"][0]}]}
    for event, data in enumerate([[message, []], [[shown], ""]]):
        visitor = {"session_hash": f"stranger{event}"}
        asked = {"data": data, "fn_index": config["dependencies"][event]["id"], **visitor}
        httpx.post(f"{address}/gradio_api/queue/join", json=asked).raise_for_status()
        told = httpx.get(f"{address}/gradio_api/queue/data", params=visitor, timeout=PATIENCE).text
        assert '"success":false' in told and "was not uploaded by a user" in told


def test_a_phone_shows_all_of_it(visits, address):
    demo = visits.open(address)
    demo.page.set_viewport_size({"width": 360, "height": 740})
    demo.ask(LEFT, EXAMPLES / "castle.png")
    demo.answer(1)
    for part in (demo.box, demo.send, demo.answers.first):
        expect(part).to_be_in_viewport(ratio=1)
    assert demo.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_stop_leaving_and_the_next_person(visits, endless):
    first, second = visits.open(endless), visits.open(endless)
    first.ask(LEFT, EXAMPLES / "castle.png")
    expect(first.answers).to_contain_text("A rice cracker.", timeout=PATIENCE)
    first.stop.click()
    first.answer(1)
    first.ask("Is there a castle in the picture?")
    expect(first.answers).to_have_count(2, timeout=PATIENCE)
    # the second waits until the first leaves
    second.ask(LEFT, EXAMPLES / "castle.png")
    expect(second.stop).to_be_visible()
    expect(second.answers).to_have_count(0)
    first.page.close()
    expect(second.answers).to_contain_text("A rice cracker.", timeout=PATIENCE)
    second.stop.click()
    second.answer(1)
    assert visits.strangers == []
