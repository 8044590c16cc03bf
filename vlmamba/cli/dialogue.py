# SPDX-License-Identifier: Apache-2.0
"""What was read stays read: the turns of a conversation, and many questions about the same pictures."""

import time
from collections.abc import Callable
from dataclasses import replace

from vlmamba.cli.messages import assistant_message, user_message
from vlmamba.cli.session import Answer, Session
from vlmamba.models.prefix import PrefixState
from vlmamba.models.vlmamba.processing_vlmamba import IMAGE_TOKEN
from vlmamba.models.vlmamba.splitting import check_split


class Dialogue:
    """A conversation whose state is kept, so that a turn reads its own words and pictures only.

    The model reads on from the tokens that it has said. Where the chat template writes an earlier turn otherwise than
    before, the whole conversation is read again.

    Args:
        session: answers.
    """

    def __init__(self, session: Session):
        self.session = session
        self.messages: list[dict] = []
        self._state: PrefixState | None = None
        self._text = ""  # what the state has read

    def answer(self, turn: dict, max_new_tokens: int = 64, write: Callable[[str], None] | None = None) -> Answer:
        """Answer the user's next turn; see `Session.answer`. After an error, the conversation is as before."""
        start = time.perf_counter()
        messages = [*self.messages, turn]
        text, images = self.session.prompt(messages)
        state, new = None, text
        if self._state is not None and self.session.reads_on and text.startswith(self._text):
            state, new = self._state, text[len(self._text) :]
            images = self.session.prompt([turn])[1]
        inputs = self.session.inputs(new, images, state)
        # all but the last token, which generation needs
        ids = inputs.pop("input_ids")
        inputs.pop("attention_mask", None)
        if ids.shape[1] > 1:
            state = self.session.read({"input_ids": ids[:, :-1], **inputs}, state)
            inputs = {}
        answer = self.session.generate({"input_ids": ids[:, -1:], **inputs}, state, max_new_tokens, write)
        said = assistant_message(answer.text)
        # a placeholder that was said has no image
        kept = [token for token in answer.ids if token not in self.session.unsaid]
        self._state = self.session.read({"input_ids": ids.new_tensor([[*ids[0, -1:].tolist(), *kept]])}, state)
        self._text = text + said["content"][0]["text"]
        self.messages = [*messages, said]
        return replace(answer, seconds=time.perf_counter() - start)


class Pictures:
    """Questions about the same pictures, which are read once.

    Args:
        session: answers.
        images: the pictures.
    """

    def __init__(self, session: Session, images: list):
        self.session = session
        self.images = images
        self._state: PrefixState | None = None
        self._beginning = ""  # what the state has read

    def answer(self, question: str, max_new_tokens: int = 64) -> Answer:
        """Answer a question; the pictures stand where it says `<image>`, else in front of it."""
        start = time.perf_counter()
        text, images = self.session.prompt([user_message(question, self.images)])
        before, image, rest = text.rpartition(IMAGE_TOKEN)
        beginning = before + image
        if not self._cut(beginning, rest):
            return self.session.generate(self.session.inputs(text, images), None, max_new_tokens)
        if beginning != self._beginning:
            self._state = self.session.read(self.session.inputs(beginning, images))
            self._beginning = beginning
        answer = self.session.generate(self.session.inputs(rest, [], self._state), self._state, max_new_tokens)
        return replace(answer, seconds=time.perf_counter() - start)

    def _cut(self, beginning: str, rest: str) -> bool:
        """Whether the tokens are the same when the prompt is cut there."""
        if not beginning or not rest or not self.session.reads_on:
            return False
        try:
            check_split(self.session.processor.tokenizer, beginning, rest, add_special_tokens=False)
        except ValueError:
            return False
        return True
