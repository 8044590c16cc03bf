# SPDX-License-Identifier: Apache-2.0
"""The ways in which people call a VLM: pipelines, chats, streams, compiled steps, half precision."""

import base64
import io
from threading import Thread

import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from transformers import AutoModelForImageTextToText, CompileConfig, TextIteratorStreamer, pipeline

from tests.close import FLOOR, assert_close, assert_no_worse_than_torch
from tests.models.tiny import LANGUAGE_MODELS, tiny_model, tiny_processor, tiny_text_config
from vlmamba.models.modeling_utils import CACHE
from vlmamba.ops import use_backend

NEW = 8
TASKS = ("image-text-to-text", "any-to-any")


def picture(shade: int) -> Image.Image:
    """Noise of a size of its own."""
    pixels = torch.randint(0, 255, (20, 16 + shade, 3), generator=torch.Generator().manual_seed(shade))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def part(shade: int) -> dict:
    return {"type": "image", "image": picture(shade)}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


CHATS = {
    "one image": [{"role": "user", "content": [part(1), text(" what is this ?")]}],
    "two images": [{"role": "user", "content": [text("is "), part(2), text(" left of "), part(3), text(" ?")]}],
    "turns": [
        {"role": "user", "content": [part(1), text(" what ?")]},
        {"role": "assistant", "content": [text("a dog .")]},
        {"role": "user", "content": [text("how many are there of "), part(4)]},
    ],
    "text only": [{"role": "user", "content": [text("how many ?")]}],
}


@pytest.fixture(scope="module")
def model():
    return tiny_model().float()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calling")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def inputs_of(processor, chat: list) -> dict[str, torch.Tensor]:
    return processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def told(rows: list) -> list[str]:
    """The texts of a pipeline, which keeps the blank between a prompt's last word and the answer's first."""
    return [(row[0] if isinstance(row, list) else row)["generated_text"].strip() for row in rows]


def answer(model, processor, chat: list, **options) -> str:
    inputs = inputs_of(processor, chat)
    out = model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("task", TASKS)
def test_a_pipeline_answers_chats_as_generate_does(model, processor, folder, task):
    pipe = pipeline(task, model=str(folder))
    options = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": NEW, "do_sample": False}}
    alone = [answer(model, processor, chat) for chat in CHATS.values()]
    assert len(set(alone)) == len(alone)
    assert told([pipe(text=chat, **options) for chat in CHATS.values()]) == alone
    # several at a time; in one batch, with other numbers of images and tokens, as long as all have images
    assert told(pipe(text=list(CHATS.values()), **options)) == alone
    assert told(pipe(text=list(CHATS.values())[:3], batch_size=3, **options)) == alone[:3]


@pytest.mark.parametrize("task", TASKS)
def test_a_pipeline_takes_plain_prompts(model, processor, folder, task):
    pipe = pipeline(task, model=str(folder))
    options = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": NEW, "do_sample": False}}
    names = ("one image", "two images")
    prompts = [processor.apply_chat_template(CHATS[name], add_generation_prompt=True) for name in names]
    images = [[picture(1)], [picture(2), picture(3)]]
    expected = [answer(model, processor, CHATS[name]) for name in names]
    assert told(pipe(images=images, text=prompts, **options)) == expected
    prompt = processor.apply_chat_template(CHATS["text only"], add_generation_prompt=True)
    assert told(pipe(text=prompt, **options)) == [answer(model, processor, CHATS["text only"])]


def test_a_pipeline_passes_generation_on(model, processor, folder):
    pipe = pipeline("image-text-to-text", model=str(folder))
    chat = CHATS["turns"]
    for options in ({"num_beams": 3}, {"do_sample": True, "temperature": 3.0}, {"repetition_penalty": 1.5}):
        torch.manual_seed(0)
        expected = answer(model, processor, chat, **options)
        torch.manual_seed(0)
        given = pipe(text=chat, return_full_text=False, generate_kwargs={"max_new_tokens": NEW, **options})
        assert told(given) == [expected]


def test_an_iterator_streams_what_generate_returns(model, processor):
    inputs = inputs_of(processor, CHATS["one image"])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=model.generate, kwargs={**inputs, "max_new_tokens": NEW, "streamer": streamer})
    thread.start()
    pieces = [piece for piece in streamer if piece]
    thread.join()
    assert len(pieces) > 2 and "".join(pieces).strip() == answer(model, processor, CHATS["one image"])


def test_the_chat_template_takes_images_in_every_form(processor, tmp_path):
    image = picture(3)
    image.save(tmp_path / "image.png")
    buffer = io.BytesIO()
    image.save(buffer, "png")
    coded = base64.b64encode(buffer.getvalue()).decode()
    address = f"data:image/png;base64,{coded}"
    forms = [
        {"type": "image", "image": image},
        {"type": "image", "image": str(tmp_path / "image.png")},
        {"type": "image", "path": str(tmp_path / "image.png")},
        {"type": "image", "url": str(tmp_path / "image.png")},
        {"type": "image", "url": address},
        {"type": "image", "base64": coded},
        {"type": "image_url", "image_url": {"url": address}},
    ]
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, text(" what ?")]}])
    expected = processor(images=image, text=prompt, return_tensors="pt")
    for form in forms:
        given = processor.apply_chat_template(
            [{"role": "user", "content": [form, text(" what ?")]}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert given.keys() == expected.keys(), form.keys()
        assert all(torch.equal(given[key], expected[key]) for key in expected), form.keys()


@pytest.fixture
def compiler():
    """Graphs that another test made would be found again."""
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_a_step_compiles_once_without_graph_breaks(compiler, processor, family):
    """A token on a warm cache: one graph for all tokens, with the eager model's logits."""
    model = tiny_model(text_config={**tiny_text_config(family), "num_hidden_layers": 2}).float()
    inputs = inputs_of(processor, CHATS["one image"])

    def logits(step) -> torch.Tensor:
        out = model(**inputs, use_cache=True)
        found = []
        for token in (7, 9, 11, 13):
            out = step(input_ids=torch.tensor([[token]]), use_cache=True, **{CACHE: out[CACHE]})
            found.append(out.logits)
        return torch.cat(found, 1)

    with torch.no_grad():
        expected = logits(model)
        with torch._dynamo.config.patch(error_on_recompile=True):
            given = logits(torch.compile(model, fullgraph=True, backend="aot_eager"))
    assert compiler["unique_graphs"] == 1
    assert_close("compiled", given, expected.double())


def test_generate_compiles_its_steps_on_a_static_cache(compiler, processor):
    """As `transformers serve --compile` asks for on a GPU; once for prompts of any length."""
    model = tiny_model(text_config={**tiny_text_config(), "num_hidden_layers": 2}).float()
    config = CompileConfig(fullgraph=True, mode=None, backend="aot_eager")
    config._compile_all_devices = True  # generate leaves a CPU alone by itself
    with torch._dynamo.config.patch(error_on_recompile=True):
        for chat in CHATS.values():
            expected = answer(model, processor, chat)
            assert answer(model, processor, chat, cache_implementation="static") == expected
            given = answer(model, processor, chat, cache_implementation="static", compile_config=config)
            assert given == expected
    assert compiler["unique_graphs"] == 1


@pytest.mark.parametrize("way", ["compile", "export"])
def test_a_prompt_with_an_image_is_one_graph(compiler, processor, way):
    model = tiny_model().float()
    inputs = {**inputs_of(processor, CHATS["one image"]), "use_cache": False}
    with torch.no_grad():
        if way == "compile":
            graph = torch.compile(model, fullgraph=True, backend="aot_eager")
        else:
            graph = torch.export.export(model, (), inputs, strict=False).module()
        assert_close("one graph", graph(**inputs).logits, model(**inputs).logits.double())
        # images without a place are no silent mistake there either
        text = {**inputs, "input_ids": torch.full_like(inputs["input_ids"], 7)}
        with pytest.raises(RuntimeError, match="assertion failed"):
            graph(**text)


def test_the_default_compiler_answers_the_same(compiler, processor):
    model = tiny_model(text_config={**tiny_text_config(), "num_hidden_layers": 1}).float()
    config = CompileConfig(fullgraph=True, mode=None)
    config._compile_all_devices = True
    expected = answer(model, processor, CHATS["turns"])
    assert answer(model, processor, CHATS["turns"], cache_implementation="static", compile_config=config) == expected


def test_a_model_loaded_in_bfloat16_is_as_near_as_plain_pytorch(model, processor, folder):
    """Its logits are at most twice as far from float32's as those of PyTorch's operations in bfloat16."""
    loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    kinds = {name: value.dtype for name, value in loaded.named_parameters()}
    assert all((kind == torch.float32) == ("A_log" in name) for name, kind in kinds.items())
    for name, chat in CHATS.items():
        inputs = inputs_of(processor, chat)
        with torch.inference_mode():
            expected, ours = model(**inputs).logits, loaded(**inputs).logits
            with use_backend("torch"):
                plain = loaded(**inputs).logits
        assert ours.dtype == plain.dtype == torch.float32
        rounded = {torch.float32: FLOOR[torch.bfloat16]}
        assert_no_worse_than_torch(name, ours, plain, expected.double(), rounded)
        assert answer(loaded, processor, chat)


def test_autocast_is_as_near_as_plain_pytorch(model, processor):
    for name, chat in CHATS.items():
        inputs = inputs_of(processor, chat)
        with torch.inference_mode():
            expected = model(**inputs).logits
            with torch.autocast("cpu", torch.bfloat16):
                ours = model(**inputs).logits
                assert answer(model, processor, chat)
                with use_backend("torch"):
                    plain = model(**inputs).logits
        assert not torch.equal(ours, expected)
        rounded = {torch.float32: FLOOR[torch.bfloat16], torch.bfloat16: FLOOR[torch.bfloat16]}
        assert_no_worse_than_torch(name, ours, plain, expected.double(), rounded)
