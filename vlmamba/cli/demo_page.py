# SPDX-License-Identifier: Apache-2.0
"""The page of `vlmamba serve-demo`; what is set here keeps it from asking anything of the internet."""

import os
from html import escape
from typing import TYPE_CHECKING

from vlmamba.assets import bundled_model
from vlmamba.cli.demo_answers import Answers

# gradio reads it when it is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio  # noqa: E402
from fastapi import FastAPI  # noqa: E402

if TYPE_CHECKING:
    from vlmamba.cli.session import Session

TITLE = "Ask a picture"
LARGEST_UPLOAD = "20mb"
MOST_WAITING = 32
# seconds: how often uploads are looked through, and how old they grow
UPLOADS = (3600, 24 * 3600)
CSS = """
.model { text-align: center; margin: 0; overflow-wrap: anywhere; }
"""


def page(session: "Session", max_new_tokens: int, folder: str) -> FastAPI:
    """The web application.

    Args:
        session: answers.
        max_new_tokens: longest answer.
        folder: for uploads.
    """
    # gradio reads it when components are made
    os.environ["GRADIO_TEMP_DIR"] = folder
    chat = gradio.ChatInterface(
        Answers(session, max_new_tokens).stream,
        multimodal=True,
        title=TITLE,
        description=_description(session),
        chatbot=gradio.Chatbot(
            label="Conversation",
            placeholder="Add a picture and ask about it.",
            # an answer is shown as the model gives it
            render_markdown=False,
            feedback_options=None,
            scale=1,
        ),
        textbox=gradio.MultimodalTextbox(
            label="Question",
            placeholder="Your question",
            file_types=["image"],
            file_count="multiple",
            stop_btn=True,
            autofocus=True,
        ),
        concurrency_limit=1,
        delete_cache=UPLOADS,
        analytics_enabled=False,
        api_visibility="private",
    )
    chat.queue(max_size=MOST_WAITING)
    # the machine's fonts: others would be fetched
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        chat,
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
    )


def _description(session: "Session") -> str:
    bundled = session.folder == bundled_model()
    name = escape(session.folder.resolve().name) + " (the bundled model)" * bundled
    size = _count(sum(parameter.numel() for parameter in session.model.parameters()))
    dtype = str(session.model.dtype).removeprefix("torch.")
    hint = "<br>It is small and knows drawings of single things, no photos." * bundled
    return (
        f'<p class="model"><b>{name}</b>: {size} parameters, {session.backend} kernels, {dtype} on '
        f"{session.model.device}.{hint}</p>"
    )


def _count(number: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:,}"
