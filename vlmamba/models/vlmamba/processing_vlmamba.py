# SPDX-License-Identifier: Apache-2.0
"""Text and images in, model inputs out."""

from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import BatchEncoding

from vlmamba.models.remote_code import PackagedProcessor
from vlmamba.models.vlmamba.chat_templates import CHAT_TEMPLATE, RATIONALE_CHAT_TEMPLATE
from vlmamba.models.vlmamba.rationale import TOR_TOKEN
from vlmamba.models.vlmamba.splitting import split_prompt

IMAGE_TOKEN = "<image>"


class VLMambaProcessor(PackagedProcessor, ProcessorMixin):
    """An image processor and a tokenizer: expands every `<image>` to the placeholders that its features replace.

    An image that the image processor cuts into tiles takes as many placeholders for each of its views, which follow
    each other with nothing between: the thumbnail, then the tiles row by row.

    Args:
        image_processor: e.g. `VLMambaImageProcessor`.
        tokenizer: has the token `<image>`.
        chat_template: Jinja template; when None `CHAT_TEMPLATE`, or `RATIONALE_CHAT_TEMPLATE` with `num_tor_tokens`.
        num_image_tokens: placeholders per view of an image (`VLMambaConfig.image_seq_length`).
        num_tor_tokens: what every `<tor>` of a text becomes, for models with a rationale traversal (10 in Meteor).

    Example:
        >>> processor(images=[image], text="<|user|><image>What is this?<|assistant|>", return_tensors="pt")
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        num_image_tokens: int = 196,
        num_tor_tokens: int = 0,
        **kwargs: object,
    ):
        self.num_image_tokens = num_image_tokens
        self.num_tor_tokens = num_tor_tokens
        self.image_token = IMAGE_TOKEN
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            raise ValueError(f"tokenizer: it has no token {IMAGE_TOKEN}; add it as a special token")
        if num_tor_tokens and TOR_TOKEN not in tokenizer.get_vocab():
            raise ValueError(f"tokenizer: it has no token {TOR_TOKEN}; add it as a special token")
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        chat_template = chat_template or (RATIONALE_CHAT_TEMPLATE if num_tor_tokens else CHAT_TEMPLATE)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(
        self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs: object
    ) -> BatchEncoding:
        """Process images and text; see `transformers.ProcessorMixin.__call__`.

        Raises:
            ValueError: the text has more or fewer `<image>` than there are images; both numbers are named. Or a prompt
                has more than `max_length` tokens, unless `truncation` is asked for.
        """
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            nested = isinstance(images, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in images)
            if nested and len(images) == len(texts) > 1:
                for row, (item, mine) in enumerate(zip(texts, images, strict=True)):
                    self._check_counts([item], mine, f"text {row}")
            else:
                self._check_counts(texts, images, "the text")
            if self.num_tor_tokens:
                repeated = [item.replace(TOR_TOKEN, TOR_TOKEN * self.num_tor_tokens) for item in texts]
                text = repeated[0] if isinstance(text, str) else repeated
        limit = None if kwargs.get("truncation") or text is None else kwargs.pop("max_length", None)
        if limit is not None and kwargs.get("padding") == "max_length":
            kwargs["max_length"] = limit
        batch = super().__call__(images=images, text=text, **kwargs)
        if limit is not None:
            for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
                self._check_length(row, [int(token) for token, seen in zip(ids, mask, strict=True) if seen], limit)
        return batch

    def _check_length(self, row: int, tokens: list[int], limit: int) -> None:
        if len(tokens) > limit:
            images = tokens.count(self.image_token_id)
            raise ValueError(
                f"text {row} has {len(tokens)} tokens ({images} of them of images), expected at most max_length {limit}"
            )

    def split_prompt(self, conversations: list, **options: object) -> tuple[str, str | list[str]]:
        """Cut the prompts of conversations after their last image, so that all before can be read once.

        Args:
            conversations: chat messages, or a list of such whose prompts are the same up to the last image.
            options: of the tokenizer, as they will be given when the parts are processed.

        Returns:
            The beginning with its images, for `model.prefix_state`; and what follows, a text or one for each
            conversation, for `model.generate(..., prefix=state)`.

        Raises:
            ValueError: there is no image, beginnings differ, or a part's tokens are not those of the whole prompt.

        Example:
            >>> beginning, rests = processor.split_prompt(conversations)
            >>> state = model.prefix_state(**processor(images=image, text=beginning, return_tensors="pt"))
            >>> out = model.generate(**processor(text=rests, padding=True, return_tensors="pt"), prefix=state)
        """
        return split_prompt(self, conversations, **options)

    def _check_counts(self, texts: list, images: object, name: str) -> None:
        found, given = sum(item.count(self.image_token) for item in texts if isinstance(item, str)), _count(images)
        if found != given:
            raise ValueError(f"{name} has {found} {self.image_token} placeholder(s), but {given} image(s) are given")

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: object) -> str:
        views = int(image_inputs["num_patches"][image_idx]) if "num_patches" in image_inputs else 1
        return self.image_token * (self.num_image_tokens * views)

    @property
    def unused_input_names(self) -> list[str]:
        """What the image processor tells this processor only."""
        return ["num_patches"]

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs: object) -> MultiModalData:
        options = self._merge_kwargs(**kwargs)["images_kwargs"]
        # image processors of transformers that make no tiles do not know the method
        count = getattr(self.image_processor, "get_number_of_image_patches", lambda *given: 1)
        views = [count(*size, options) for size in image_sizes or []]
        return MultiModalData(num_image_tokens=[self.num_image_tokens * n for n in views], num_image_patches=views)


def _count(images: object) -> int:
    if images is None:
        return 0
    if isinstance(images, (list, tuple)):
        return sum(_count(item) for item in images)
    # a batch of arrays or tensors, or one image
    return images.shape[0] if getattr(images, "ndim", 0) == 4 else 1
