# SPDX-License-Identifier: Apache-2.0
"""Where a prompt may be cut so that its beginning can be read once: only where its tokens are the same then."""

from transformers import PreTrainedTokenizerBase


def check_split(tokenizer: PreTrainedTokenizerBase, beginning: str, rest: str, **options: object) -> None:
    """Whether two parts of a text give the tokens of the whole.

    Args:
        tokenizer: reads both parts and the whole.
        beginning, rest: the parts.
        options: of the tokenizer, such as `add_special_tokens=False`.

    Raises:
        ValueError: the tokenizer joins what is cut, or adds special tokens to each part.
    """
    whole, first, second = (tokenizer(text, **options)["input_ids"] for text in (beginning + rest, beginning, rest))
    if first + second == whole:
        return
    start = next((i for i, (a, b) in enumerate(zip(first + second, whole, strict=False)) if a != b), len(whole))
    cut, joined = (tokenizer.convert_ids_to_tokens(ids[start : start + 2]) for ids in (first + second, whole))
    raise ValueError(
        f"the text cannot be cut between {beginning[-20:]!r} and {rest[:20]!r}: the tokenizer reads {cut} there, "
        f"{joined} in the whole; cut elsewhere, or pass add_special_tokens=False"
    )


def split_prompt(processor, conversations: list, **options: object) -> tuple[str, str | list[str]]:
    """See `VLMambaProcessor.split_prompt`."""
    if not conversations:
        raise ValueError("conversations is empty, expected chat messages, or a list of such")
    single = isinstance(conversations[0], dict)
    texts = processor.apply_chat_template(
        [conversations] if single else conversations, add_generation_prompt=True, tokenize=False
    )
    beginnings, rests = [], []
    for number, text in enumerate(texts):
        before, image, rest = text.rpartition(processor.image_token)
        if not image:
            raise ValueError(f"conversation {number} has no image, expected one to cut the prompt after")
        beginnings.append(before + image)
        rests.append(rest)
        if beginnings[number] != beginnings[0]:
            raise ValueError(
                f"conversation {number} begins with {beginnings[number]!r}, the first with {beginnings[0]!r}: "
                f"expected the same up to the last image"
            )
        check_split(processor.tokenizer, beginnings[0], rest, **options)
    return beginnings[0], rests[0] if single else rests
