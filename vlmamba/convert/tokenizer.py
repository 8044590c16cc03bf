# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of language models whose checkpoints come without one."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from transformers import PreTrainedTokenizerFast

FILE = "tokenizer.json"


def read_tokenizer(path: str | Path | None, published: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a `tokenizer.json`, without special tokens.

    Args:
        path: of the file, or of a folder that has one; None to fetch the published one.
        published: its repository on huggingface.co.

    Raises:
        ValueError: there is no such file, it cannot be fetched, or it is none; the message says what to do.
    """
    if path is None:
        try:
            path = hf_hub_download(published, FILE)
        except Exception as error:  # the hub raises many kinds
            raise ValueError(
                f"tokenizer: the {FILE} of {published} on huggingface.co cannot be fetched; fetch it yourself and give "
                "it with --tokenizer FILE"
            ) from error
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"tokenizer {str(path)!r}: there is no such file")
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(f"tokenizer {str(path)!r}: it is no {FILE} ({' '.join(str(error).split())})") from error
