# SPDX-License-Identifier: Apache-2.0
"""The page of `vlmamba serve-demo`; what is set here keeps it from asking anything of the internet."""

import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from html import escape
from typing import TYPE_CHECKING

from vlmamba.assets import bundled_model
from vlmamba.cli.demo_answers import Answers, files_of, messages, text_of
from vlmamba.cli.errors import CommandError, one_line, report

# gradio reads it when it is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio  # noqa: E402
from fastapi import FastAPI  # noqa: E402

if TYPE_CHECKING:
    from vlmamba.cli.session import Session

TITLE = "Ask a picture"
HINT = "Add a picture and ask about it."
LARGEST_UPLOAD = "20mb"
MOST_WAITING = 32
# seconds: how often uploads are looked through, and how old they grow
UPLOADS = (3600, 24 * 3600)
CSS = """
.about { text-align: center; overflow-wrap: anywhere; }
.problem { color: #b91c1c; overflow-wrap: anywhere; }
.dark .problem { color: #fca5a5; }
/* it would send the picture to a stranger */
.icon-button-wrapper:has([aria-label="Share"]) { display: none; }
"""
# gradio's box has a name only as long as it shows a placeholder
NAME_THE_BOX = "() => document.querySelector('textarea').setAttribute('aria-label', 'Question')"


def page(session: "Session", max_new_tokens: int, folder: str) -> FastAPI:
    """The web application.

    Args:
        session: answers.
        max_new_tokens: longest answer.
        folder: for uploads.
    """
    # gradio reads it when components are made
    os.environ["GRADIO_TEMP_DIR"] = folder
    # the machine's own fonts: others would be fetched
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        _blocks(session, Answers(session, max_new_tokens)),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=CSS,
        js=NAME_THE_BOX,
    )


def _blocks(session: "Session", answers: Answers) -> gradio.Blocks:
    async def answer(history: list[dict], problem: str) -> AsyncIterator[tuple]:
        # a question that was refused leaves the box alone: by now the mended one may be on its way
        if problem:
            yield gradio.skip(), gradio.skip(), gradio.skip()
            return
        try:
            async with aclosing(answers.stream(history)) as texts:
                async for text in texts:
                    yield [*history, {"role": "assistant", "content": text}], gradio.skip(), gradio.skip()
            yield gradio.skip(), gradio.skip(), _ready()
        # whatever it is, the page says it and goes on
        except Exception as error:
            yield gradio.skip(), _problem(error), _ready()

    with gradio.Blocks(title=TITLE, fill_height=True, analytics_enabled=False, delete_cache=UPLOADS) as blocks:
        gradio.HTML(_about(session))
        # an answer is shown as it is, not as Markdown
        chat = gradio.Chatbot(
            label="Conversation",
            placeholder=HINT,
            render_markdown=False,
            buttons=["copy", "copy_all"],
            allow_file_downloads=False,
            scale=1,
        )
        problem = gradio.HTML()
        box = gradio.MultimodalTextbox(
            label="Question",
            show_label=False,
            placeholder="Your question",
            file_types=["image"],
            file_count="multiple",
            autofocus=True,
        )
        # no drawings over the conversation, and no entries in a description of the server
        options = {"show_progress": "hidden", "api_visibility": "private"}
        asked = box.submit(_ask, [box, chat], [box, chat, problem], **options)
        # a mended question may come before the page is done with the one before
        options["trigger_mode"] = "multiple"
        shown = options | {"show_progress": "minimal"}
        answered = asked.then(answer, [chat, problem], [chat, problem, box], concurrency_limit=1, **shown)
        box.stop(_ready, None, box, cancels=[answered], **options)
        chat.undo(_undo, chat, [box, chat, problem], **options)
    # before that, gradio would take any file of this machine for an upload
    blocks.has_launched = True
    return blocks.queue(max_size=MOST_WAITING)


def _ask(message: dict, history: list[dict]) -> tuple:
    """Put a question into the conversation; one that cannot be answered stays in the box to be mended."""
    pictures = [{"path": path} for path in message["files"]]
    content = [{"type": "file", "file": picture} for picture in pictures] + [{"type": "text", "text": message["text"]}]
    try:
        messages([*history, {"role": "user", "content": content}])
    except Exception as error:
        return gradio.skip(), gradio.skip(), _problem(error)
    waiting = gradio.MultimodalTextbox(value=None, interactive=False, submit_btn=False, stop_btn=True)
    return waiting, [*history, {"role": "user", "content": [*pictures, message["text"].strip()]}], ""


def _ready() -> gradio.MultimodalTextbox:
    return gradio.MultimodalTextbox(interactive=True, submit_btn=True, stop_btn=False)


def _undo(history: list[dict]) -> tuple:
    """The last question is put back into the box."""
    last = max(index for index, entry in enumerate(history) if entry["role"] == "user")
    return {"text": text_of(history[last]), "files": files_of(history[last])}, history[:last], ""


def _problem(error: Exception) -> str:
    """What went wrong in one sentence for the person; a failure of the program goes to stderr as well."""
    sentence = one_line(error).replace("argument QUESTION: it", "the question").rstrip(".")
    if not isinstance(error, CommandError):
        report(f"{type(error).__name__}: {sentence}")
        sentence = f"the model failed: {sentence}"
    return f'<p class="problem" role="alert">{escape(sentence[0].upper() + sentence[1:])}.</p>'


def _about(session: "Session") -> str:
    bundled = session.folder == bundled_model()
    name = escape(session.folder.resolve().name)
    size = _count(sum(parameter.numel() for parameter in session.model.parameters()))
    dtype = str(session.model.dtype).removeprefix("torch.")
    hint = "<br>The bundled model: small, it knows drawings of things, no photos." * bundled
    return (
        f'<div class="about"><h1>{TITLE}</h1>'
        f"<b>{name}</b> · {size} parameters · {session.backend} kernels, {dtype}, {session.model.device}{hint}</div>"
    )


def _count(number: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:,}"
