# SPDX-License-Identifier: Apache-2.0
"""Train the sentencepiece tokenizer of the bundled model on the text of its scenes.

    python -m training.train_tokenizer --recipe training/recipes/emoji_tokenizer.yaml

Writes a folder that `AutoTokenizer.from_pretrained` loads. Byte fallback: any text can be written.
"""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from training.common import parse_recipe
from training.data.emoji_scenes import EmojiScenes, load_drawings

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<|user|>", "<|assistant|>"]


def sentences(scenes: EmojiScenes, count: int) -> Iterator[str]:
    """Questions and answers of `count` scenes, and every name once."""
    yield from sorted({drawing.name for drawing in scenes.drawings})
    for index in tqdm(range(count), desc="scenes"):
        _, turns = scenes[index]
        yield from itertools.chain.from_iterable((turn.question, turn.answer) for turn in turns)


def to_fast(model: sentencepiece.SentencePieceProcessor) -> PreTrainedTokenizerFast:
    """The trained unigram model as a transformers tokenizer."""
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=model.unk_id(), byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=["<image>", "<|user|>", "<|assistant|>"],
    )


def main() -> None:
    recipe = parse_recipe(__doc__, "training/recipes/emoji_tokenizer.yaml")
    data = recipe["data"]
    scenes = EmojiScenes(load_drawings(Path(data["folder"]) / "drawings", data["vendors"]), seed=data["seed"])
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(scenes, data["scenes"]),
        model_writer=trained,
        model_type="unigram",
        vocab_size=recipe["vocab_size"],
        normalization_rule_name="nfkc",
        byte_fallback=True,
        pad_id=3,
        user_defined_symbols=SPECIAL[4:],
        hard_vocab_limit=False,
        minloglevel=1,
    )
    tokenizer = to_fast(sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue()))
    tokenizer.save_pretrained(recipe["output_dir"])
    print(f"{len(tokenizer)} tokens in {recipe['output_dir']}")


if __name__ == "__main__":
    main()
