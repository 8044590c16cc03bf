# SPDX-License-Identifier: Apache-2.0
"""A loaded model that answers chat messages."""

import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import StoppingCriteria, TextStreamer
from transformers.utils import logging

from vlmamba.cli.devices import find_backend, find_device, find_dtype
from vlmamba.cli.errors import CommandError
from vlmamba.cli.folder import find_model
from vlmamba.cli.terminal import status
from vlmamba.models.prefix import PrefixState
from vlmamba.models.vlmamba import VLMambaConfig, VLMambaForConditionalGeneration, VLMambaProcessor

LONGEST_REASON = 300


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: without special tokens and surrounding blanks.
        tokens: number of tokens it took.
        seconds: from the prepared images to the last token.
        ids: the tokens.
    """

    text: str
    tokens: int
    seconds: float
    ids: tuple[int, ...] = ()


class Session:
    """A model and its processor, ready to answer.

    Args:
        model: on its device, in its dtype.
        processor: of the same folder.
        folder: where they come from.
        max_context: longest prompt, in tokens; None for any.

    Example:
        >>> session = Session.load(bundled_model())
        >>> session.answer([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]).text
    """

    def __init__(
        self,
        model: VLMambaForConditionalGeneration,
        processor: VLMambaProcessor,
        folder: Path,
        max_context: int | None = None,
    ):
        self.model = model
        self.max_context = max_context
        self.processor = processor
        self.folder = folder
        self.backend = find_backend(model.device, model.dtype)

    @classmethod
    def load(
        cls,
        folder: Path | None,
        device: str = "auto",
        dtype: str = "auto",
        tiles: int | None = None,
        max_context: int | None = None,
    ) -> "Session":
        """Load a folder once; nothing is ever downloaded.

        Args:
            folder: of a VLMamba model; None for the bundled one.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            dtype: "auto" or "float32", "bfloat16" or "float16".
            tiles: largest number of tiles of a picture; as the folder's processor says when None.
            max_context: longest prompt, in tokens; None for any.

        Raises:
            CommandError: an argument is wrong, or the machine lacks the device.
        """
        place = find_device(device)
        number = find_dtype(dtype, place)
        find_backend(place, torch.float32)
        folder = find_model(folder)
        with quiet(), status("loading the model"):
            with _reasons(folder, "config and weights"):
                model, found = VLMambaForConditionalGeneration.from_pretrained(
                    folder,
                    dtype=number,
                    local_files_only=True,
                    # checked below, to say it in one line
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
                _check_weights(found)
            with _reasons(folder, "the processor files"):
                processor = VLMambaProcessor.from_pretrained(folder, local_files_only=True)
                _check_fit(model.config, processor)
            if tiles is not None:
                _set_tiles(processor.image_processor, tiles)
            return cls(model.to(place).eval(), processor, folder, max_context)

    def answer(
        self,
        messages: list[dict],
        max_new_tokens: int = 64,
        write: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer the last of some chat messages, greedily.

        Args:
            messages: `{"role", "content"}` with lists of `{"type": "image", "image": image}` and
                `{"type": "text", "text": text}` as content.
            max_new_tokens: longest answer.
            write: is given the answer piece by piece.
            stop: is asked after each token whether that was the last.

        Raises:
            CommandError: the prompt has more than `max_context` tokens.
        """
        return self.generate(self.inputs(*self.prompt(messages)), None, max_new_tokens, write, stop)

    def prompt(self, messages: list[dict]) -> tuple[str, list]:
        """The text that asks for the next answer, and its images."""
        parts = [part for message in messages for part in message["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False), images

    def inputs(self, text: str, images: list, prefix: PrefixState | None = None) -> dict[str, torch.Tensor]:
        """What the model reads of a text that follows `prefix`.

        Raises:
            CommandError: both have more than `max_context` tokens.
        """
        options = {} if prefix is None else {"add_special_tokens": False}
        with quiet():
            inputs = self.processor(images=images or None, text=text, return_tensors="pt", **options)
        seen = [] if prefix is None else [prefix.input_ids.cpu()]
        self._check_context(torch.cat([*seen, inputs["input_ids"]], dim=1))
        return dict(inputs.to(self.model.device, self.model.dtype))

    def read(self, inputs: dict[str, torch.Tensor], prefix: PrefixState | None = None) -> PrefixState:
        """The state after inputs that follow `prefix`."""
        with quiet():
            return self.model.prefix_state(**inputs, prefix=prefix)

    def generate(
        self,
        inputs: dict[str, torch.Tensor],
        prefix: PrefixState | None,
        max_new_tokens: int,
        write: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """The answer to inputs that follow `prefix`; see `answer`."""
        tokenizer = self.processor.tokenizer
        start = time.perf_counter()
        with quiet():
            tokens = self.model.generate(
                **inputs,
                prefix=prefix,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                streamer=AnswerStreamer(tokenizer, write) if write else None,
                stopping_criteria=[_Stop(stop)] if stop else None,
            )[0, inputs["input_ids"].shape[1] :].tolist()
        seconds = time.perf_counter() - start
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return Answer(text, len(tokens), seconds, tuple(tokens))

    @property
    def reads_on(self) -> bool:
        """Whether a state is enough to go on from: a rationale traversal reads the whole prompt."""
        return self.model.config.rationale_config is None

    @property
    def unsaid(self) -> set[int]:
        """Tokens of an answer that are no part of what was said: its end, and placeholders of images."""
        return {self.processor.tokenizer.eos_token_id, self.processor.image_token_id}

    def _check_context(self, ids: torch.Tensor) -> None:
        if self.max_context is not None and ids.shape[1] > self.max_context:
            images = int((ids == self.processor.image_token_id).sum())
            raise CommandError(
                f"--max-context {self.max_context}: the prompt has {ids.shape[1]} tokens ({images} of them of "
                f"pictures); expected at most {self.max_context}"
            )


class AnswerStreamer(TextStreamer):
    """Passes an answer on word by word, without the blanks around it.

    Args:
        tokenizer: decodes the tokens.
        write: is given every new piece of text.
    """

    def __init__(self, tokenizer: object, write: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.started = False
        self.blanks = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Blanks wait until a word follows them."""
        text = self.blanks + text if self.started else text.lstrip()
        words = text.rstrip()
        self.blanks = text[len(words) :]
        if words:
            self.started = True
            self.write(words)


class _Stop(StoppingCriteria):
    """Ends an answer that nobody waits for."""

    def __init__(self, stop: Callable[[], bool]):
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.full((len(input_ids),), self.stop(), dtype=torch.bool, device=input_ids.device)


@contextmanager
def _reasons(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    # what is wrong in a folder comes as almost any error
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        reason = textwrap.shorten(reason, LONGEST_REASON, placeholder=" ...")
        raise CommandError(f"--model '{folder}': {what} cannot be loaded: {reason}") from error


def _check_weights(found: dict) -> None:
    """Missing tensors would be left random with a warning."""
    if missing := found["missing_keys"]:
        raise ValueError(f"the weights lack {len(missing)} of the model's tensors, e.g. {min(missing)}")
    if mismatched := found["mismatched_keys"]:
        name, saved, expected = min(mismatched)
        raise ValueError(f"{name} has shape {list(saved)} in the weights, {list(expected)} by config.json")


def _check_fit(config: VLMambaConfig, processor: VLMambaProcessor) -> None:
    """What would otherwise fail at the first question."""
    if processor.num_image_tokens != config.image_seq_length:
        raise ValueError(
            f"the processor writes {processor.num_image_tokens} tokens per image, the model reads "
            f"{config.image_seq_length}"
        )
    if processor.image_token_id != config.image_token_id:
        raise ValueError(f"<image> is token {processor.image_token_id}, the model expects {config.image_token_id}")
    # features stand in for the embeddings of these
    words = set(processor.tokenizer.get_vocab().values()) - {config.image_token_id, config.tor_token_id}
    if max(words) >= config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has tokens up to number {max(words)}, the model {config.text_config.vocab_size} tokens"
        )


def _set_tiles(image_processor: object, tiles: int) -> None:
    if not hasattr(image_processor, "max_patches"):
        kind = type(image_processor).__name__
        raise CommandError(f"--tiles {tiles}: the model's {kind} makes no tiles; expected a VLMambaImageProcessor")
    image_processor.max_patches = tiles


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no progress bars of libraries: the command's own lines are the only ones."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
