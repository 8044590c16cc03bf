# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks prefix`: many questions about one image, afresh and from a state; long prompts in pieces.

Both ways give the same logits, which is checked before anything is timed. Beside the state's size stands the KV cache
of a Llama of as many parameters (`benchmarks.shapes.VLM_130M`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

import vlmamba
from benchmarks import agreement, memory, report
from benchmarks.options import Options
from benchmarks.peers.vlms import PLACEHOLDER, Llava, Ours, cache_bytes
from benchmarks.shapes import VLM_130M, VlmSizes
from benchmarks.timing import interleave, ratios, spread, threads
from vlmamba.assets import bundled_model

QUESTION_TOKENS, ANSWER_TOKENS = 12, 8
PIECE = 512
TIMED_TOKENS = 2048  # longer prompts are weighed only
WEIGHED_LAYERS = 2  # each layer lets go of what it took: two of them reach the peak of all
FRESH, STATE, FRESH_BATCH, STATE_BATCH = "afresh", "from the state", "afresh, one batch", "from the state, one batch"
WHOLE, PIECES = "whole", f"{PIECE} tokens at a time"
BUNDLED = "bundled: Vim, VSS-L2, Mamba"
VIM_S = "Vim-S, VSS-L2, mamba-130m"
VIM_S_SIZES = replace(VLM_130M, side=224, vim={"hidden_size": 384, "num_hidden_layers": 24})

Tensor = torch.Tensor


@dataclass
class Subject:
    """A model, an image, and questions about it of equal length.

    Args:
        model: answers.
        beginning: ids `[1, L]` of all up to the image's end. pixels: `[1, 3, side, side]`.
        questions: ids `[N, QUESTION_TOKENS]`.
    """

    model: torch.nn.Module
    beginning: Tensor
    pixels: Tensor
    questions: Tensor

    @classmethod
    def of(cls, sizes: VlmSizes | None, count: int) -> "Subject":
        """Random weights of these sizes, or the bundled model."""
        torch.manual_seed(0)
        if sizes is None:
            model = vlmamba.VLMambaForConditionalGeneration.from_pretrained(bundled_model(), dtype=torch.float32).eval()
        else:
            model = Ours(sizes).model
        config, side = model.config, model.config.vision_config.image_size
        words = [token for token in range(config.text_config.vocab_size) if token != config.image_token_id]
        questions = torch.tensor(words)[torch.randint(8, len(words), (count, QUESTION_TOKENS))]
        beginning = torch.full((1, config.image_seq_length), config.image_token_id)
        return cls(model, beginning, torch.randn(1, 3, side, side), questions)

    def answer(self, ids: Tensor, **inputs: object) -> Tensor:
        """The first new logits of each row, after answers of ANSWER_TOKENS."""
        length = {"min_new_tokens": ANSWER_TOKENS, "max_new_tokens": ANSWER_TOKENS, "do_sample": False}
        mask = torch.ones(ids.shape, dtype=torch.long)
        unsaid = [self.model.config.image_token_id]
        more = {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": unsaid}
        return self.model.generate(ids, attention_mask=mask, **inputs, **length, **more).logits[0]

    def fresh(self, questions: Tensor) -> Tensor:
        """Read the image for each of some questions."""
        ids = torch.cat([self.beginning.expand(len(questions), -1), questions], dim=1)
        return self.answer(ids, pixel_values=self.pixels.expand(len(questions), -1, -1, -1))

    def calls(self) -> dict[str, Callable[[], Tensor]]:
        """All ways to answer all questions."""
        rows = self.questions.split(1)

        def read() -> vlmamba.PrefixState:
            return self.model.prefix_state(self.beginning, pixel_values=self.pixels)

        def from_state() -> Tensor:
            state = read()
            return torch.cat([self.answer(row, prefix=state) for row in rows])

        return {
            FRESH: lambda: torch.cat([self.fresh(row) for row in rows]),
            STATE: from_state,
            FRESH_BATCH: lambda: self.fresh(self.questions),
            STATE_BATCH: lambda: self.answer(self.questions, prefix=read()),
        }


def run(
    models: dict[str, VlmSizes | None], counts: list[int], sizes: VlmSizes, lengths: list[int], options: Options
) -> dict[str, Any]:
    """Everything that goes into the JSON file.

    Args:
        models: name -> sizes, None for the bundled one.
        counts: numbers of questions.
        sizes: of the language models that read long prompts.
        lengths: of those.
        options: how it is measured; at one number of threads.
    """
    questions = [_asked(name, models[name], count, options) for name in models for count in counts]
    prompts = [_read(sizes, length, options) for length in lengths]
    return {
        "question_tokens": QUESTION_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "questions": questions,
        "prompt_sizes": {"vocabulary": sizes.vocabulary, "mamba": sizes.mamba, "llama": sizes.llama},
        "prompts": prompts,
    }


def _asked(name: str, sizes: VlmSizes | None, count: int, options: Options) -> dict[str, Any]:
    subject = Subject.of(sizes, count)
    calls, threads_used = subject.calls(), options.threads[0]
    with report.console.status(f"{name}, {count} question(s)"), threads(threads_used):
        if options.check:
            _check({way: call() for way, call in calls.items()}, FRESH)
        samples = {way: sample.of(threads_used) for way, sample in interleave(calls, options).items()}
    state = subject.model.prefix_state(subject.beginning, pixel_values=subject.pixels)
    result = {
        "model": name,
        "parameters": subject.model.num_parameters(),
        "image_tokens": state.num_tokens,
        "state_bytes": state.num_bytes,
        "questions": count,
        "threads": threads_used,
        "clock": "process CPU time" if threads_used == 1 else "wall",
        "seconds": samples,
        "ratios": ratios(samples, (STATE, STATE_BATCH)),
        "extra_peak": {},
    }
    if options.memory and not memory.reason():
        arguments = {"sizes": sizes and asdict(sizes), "count": count}
        for way in (FRESH_BATCH, STATE_BATCH):
            result["extra_peak"][way] = memory.peak("benchmarks.prefix:questions_job", way=way, **arguments)
    seconds = ", ".join(f"{way} {report.short(spread(values)['median'])} s" for way, values in samples.items())
    report.note(f"{name}, {count} question(s): {seconds}")
    return result


def _check(logits: dict[str, Tensor], definition: str) -> None:
    for way, found in logits.items():
        error = agreement.difference(found, logits[definition])
        if error > agreement.MODEL:
            raise RuntimeError(f"{way}: logits differ from those {definition} by {error:.1e}")


def questions_job(way: str, sizes: dict | None, count: int) -> tuple[Callable, Callable]:
    """For `benchmarks.memory`: one question, and all."""
    torch.set_num_threads(1)
    subject = Subject.of(sizes and VlmSizes(**sizes), count)
    one = replace(subject, questions=subject.questions[:1])
    return one.calls()[way], subject.calls()[way]


def _language_model(sizes: VlmSizes) -> vlmamba.MambaForCausalLM:
    from transformers import MambaConfig

    torch.manual_seed(0)
    # transformers' default spread of 0.1 makes random Mamba layers overflow
    config = MambaConfig(vocab_size=sizes.vocabulary, initializer_range=0.02, pad_token_id=None, **sizes.mamba)
    return vlmamba.MambaForCausalLM(config).eval()


def _prompt_calls(model: torch.nn.Module, length: int) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(PLACEHOLDER + 1, model.config.vocab_size, (1, length), generator=generator)
    options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options["attention_mask"] = torch.ones_like(ids)

    def call(size: int | None) -> Tensor:
        return model.generate(ids, prefill_chunk_size=size, **options).logits[0]

    return {WHOLE: partial(call, None), PIECES: partial(call, PIECE)}


def prompt_job(way: str, sizes: dict, length: int) -> tuple[Callable, Callable]:
    """For `benchmarks.memory`: a prompt of a few tokens, and one of `length`."""
    torch.set_num_threads(1)
    sizes["mamba"]["num_hidden_layers"] = WEIGHED_LAYERS
    model = _language_model(VlmSizes(**sizes))
    return _prompt_calls(model, 8)[way], _prompt_calls(model, length)[way]


def _read(sizes: VlmSizes, length: int, options: Options) -> dict[str, Any]:
    model, count = _language_model(sizes), options.threads[0]
    samples = {}
    if length <= TIMED_TOKENS:
        calls = _prompt_calls(model, length)
        with report.console.status(f"a prompt of {length} tokens"), threads(count):
            if options.check:
                _check({way: call() for way, call in calls.items()}, WHOLE)
            samples = {way: sample.of(count) for way, sample in interleave(calls, options).items()}
    state = model.prefix_state(torch.ones(1, 1, dtype=torch.long))
    del model
    peaks = {}
    if options.memory and not memory.reason():
        arguments = {"sizes": asdict(sizes), "length": length}
        with report.console.status(f"a prompt of {length} tokens: peak memory"):
            peaks = {way: memory.peak("benchmarks.prefix:prompt_job", way=way, **arguments) for way in (WHOLE, PIECES)}
        report.note(f"{length} tokens: " + ", ".join(f"{way} {report.megabytes(peak)}" for way, peak in peaks.items()))
    return {
        "tokens": length,
        "seconds": samples,
        "ratios": ratios(samples, (PIECES,)),
        "extra_peak": peaks,
        # a token more is its id more
        "state_bytes": state.num_bytes + 8 * (length - 1),
        "kv_cache_bytes": kv_cache_bytes(sizes, length),
    }


def kv_cache_bytes(sizes: VlmSizes, tokens: int) -> int:
    """Of the Llama, float32: keys and values of every layer."""
    llama = sizes.llama
    width = llama["hidden_size"] // llama["num_attention_heads"] * llama["num_key_value_heads"]
    return 2 * 4 * llama["num_hidden_layers"] * width * tokens


def measured_kv_cache_bytes(sizes: VlmSizes, tokens: int) -> int:
    """The same from transformers' cache after a prompt."""
    model = Llava(sizes)
    return cache_bytes(model.prefill(torch.full((1, tokens), PLACEHOLDER + 1), None))


def tables(content: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of the questions and of the prompts."""
    ways = (FRESH, STATE, FRESH_BATCH, STATE_BATCH)
    questions = []
    for result in content["questions"]:
        medians = [spread(result["seconds"][way])["median"] for way in ways]
        saved = [result["ratios"][new][old]["median"] for new, old in ((STATE, FRESH), (STATE_BATCH, FRESH_BATCH))]
        peaks = [report.megabytes(result["extra_peak"].get(way)) for way in (FRESH_BATCH, STATE_BATCH)]
        numbers = [*map(report.short, (medians[0], medians[1], saved[0], medians[2], medians[3], saved[1]))]
        questions.append([result["model"], str(result["questions"]), *numbers, *peaks])
    prompts = []
    for result in content["prompts"]:
        medians = [spread(values)["median"] for values in result["seconds"].values()]
        peaks = [report.megabytes(result["extra_peak"].get(way)) for way in (WHOLE, PIECES)]
        sizes = [report.megabytes(result[key]) for key in ("state_bytes", "kv_cache_bytes")]
        prompts.append([str(result["tokens"]), *(map(report.short, medians) if medians else "--"), *peaks, *sizes])
    asked = f"questions about one image, answers of {ANSWER_TOKENS} tokens: seconds for all, peak above the inputs"
    columns = ["model", "questions", FRESH, STATE, "ratio", FRESH_BATCH, STATE_BATCH, "ratio"]
    return [
        (asked, [*columns, f"peak {FRESH_BATCH}", f"peak {STATE_BATCH}"], questions),
        (
            "a prompt read whole and in pieces: seconds, peak above the weights; state beside a Llama's KV cache",
            ["tokens", WHOLE, PIECES, f"peak {WHOLE}", f"peak {PIECES}", "state", "KV cache"],
            prompts,
        ),
    ]


def show(content: dict[str, Any]) -> None:
    """Both tables."""
    for title, columns, rows in tables(content):
        report.table(title, columns, rows)


def markdown(content: dict[str, Any]) -> str:
    """The tables as a document."""
    first = content["questions"][0]
    facts = f"{content['cpu']}, {content['date'][:10]}, `{content['command']}`; load {content['load'][0]} at the end"
    lines = [
        "# What a state saves",
        "",
        f"{facts}. float32, {first['threads']} thread(s), {first['clock']}, medians of interleaved rounds.",
    ]
    for title, columns, rows in tables(content):
        lines += ["", title[0].upper() + title[1:] + ".", "", _line(columns), _line(["---:"] * len(columns))]
        lines += [_line(row) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(figure: Any, content: dict[str, Any]) -> None:
    """Time over the questions; peak memory and the size of the state over the prompt's tokens."""
    prompts = content["prompts"]
    tokens = [result["tokens"] for result in prompts]
    asked, peak, size = figure.subplots(1, 3)
    for index, name in enumerate(dict.fromkeys(result["model"] for result in content["questions"])):
        for way, style in ((FRESH, "-"), (STATE, "--"), (STATE_BATCH, ":")):
            found = [r for r in content["questions"] if r["model"] == name]
            points = [(r["questions"], spread(r["seconds"][way])["median"]) for r in found]
            asked.plot(*zip(*points, strict=True), f"C{index}{style}", marker="o", label=f"{name}: {way}")
    for way, style in ((WHOLE, "-"), (PIECES, "--")):
        if all(way in result["extra_peak"] for result in prompts):
            peak.plot(tokens, [r["extra_peak"][way] / 1e6 for r in prompts], f"C0{style}", marker="o", label=way)
    for key, colour, label in (("state_bytes", "C0", "state"), ("kv_cache_bytes", "black", "KV cache of a Llama")):
        size.plot(tokens, [r[key] / 1e6 for r in prompts], color=colour, marker="o", label=label)
    asked.set(title="seconds for all answers", xlabel="questions about one image")
    peak.set(title="peak above the weights, MB", xlabel="tokens of the prompt")
    size.set(title="what is kept, MB", xlabel="tokens of the prompt")
    for axes in (asked, peak, size):
        axes.set(xscale="log", yscale="log")
        axes.grid(True, alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
