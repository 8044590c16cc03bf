# SPDX-License-Identifier: Apache-2.0
"""Chat messages from what a person types: images keep their places in the question."""

import warnings

from PIL import Image

from vlmamba.cli.errors import CommandError
from vlmamba.data.images import ImageError, load_image
from vlmamba.models.vlmamba.processing_vlmamba import IMAGE_TOKEN


def read_images(paths: list[str]) -> list[Image.Image]:
    """Read image files.

    Raises:
        CommandError: one of them is no readable image; the message says why.
    """
    images = []
    for path in paths:
        try:
            # Pillow warns about odd metadata; what matters comes as an error
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                images.append(load_image(path))
        except ImageError as error:
            raise CommandError(f"argument IMAGE: {error}") from error
    return images


def user_message(question: str, images: list[Image.Image]) -> dict:
    """One turn of the user: the images stand where the question says `<image>`, else in front of it.

    Raises:
        CommandError: the question has more or fewer `<image>` than there are images.
    """
    texts = question.split(IMAGE_TOKEN)
    placeholders = len(texts) - 1
    if placeholders == 0:
        texts = [""] * len(images) + [question]
    elif placeholders != len(images):
        raise CommandError(
            f"argument QUESTION: it has {placeholders} {IMAGE_TOKEN} placeholder(s), "
            f"but {len(images)} image(s) are given; expected as many"
        )
    content = [_text(texts[0])]
    for image, text in zip(images, texts[1:], strict=True):
        content += [{"type": "image", "image": image}, _text(text)]
    return {"role": "user", "content": [part for part in content if part.get("text") != ""]}


def assistant_message(answer: str) -> dict:
    """One turn of the model."""
    # an answer may spell the placeholder out, but it has no image
    return {"role": "assistant", "content": [_text(answer.replace(IMAGE_TOKEN, ""))]}


def _text(text: str) -> dict:
    return {"type": "text", "text": text}
