# SPDX-License-Identifier: Apache-2.0
"""Tiles: laws of the grid, what the processors make of an image of any size, answers to tiled images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessor, pipeline

from tests.models.tiny import tiny_model, tiny_processor, tiny_tokenizer
from vlmamba import CobraImageProcessor, VLMambaImageProcessor, VLMambaProcessor
from vlmamba.models.vlmamba.tiling import ENOUGH, cut, fitted_size, tile_grid

sides = st.integers(1, 300) | st.integers(1, 20_000)
sizes = st.tuples(sides, sides)
tiles = st.tuples(st.integers(1, 500), st.integers(1, 500))
limits = st.integers(1, 64)
FEW = settings(max_examples=25, deadline=None)
QUESTION = "<|user|><image> what is this ?<|assistant|>"
NEW = 8


def kept(image, tile, grid):
    """What a grid keeps of the image's height and width, as far as it counts, times its area: exact."""
    (height, width), (rows, columns) = image, grid
    return min(rows * tile[0] * width, columns * tile[1] * height, ENOUGH * height * width)


@given(sizes, tiles, limits)
@settings(max_examples=100, deadline=None)
def test_no_grid_keeps_more_and_none_with_fewer_tiles_keeps_as_much(image, tile, limit):
    found = tile_grid(image, tile, limit)
    assert 1 <= found[0] * found[1] <= limit
    most = kept(image, tile, found)
    for rows in range(1, limit + 1):
        for columns in range(1, limit // rows + 1):
            other = kept(image, tile, (rows, columns))
            assert other < most if rows * columns < found[0] * found[1] else other <= most


@given(sizes, tiles, limits)
def test_every_tile_shows_some_of_the_image(image, tile, limit):
    grid = tile_grid(image, tile, limit)
    canvas = grid[0] * tile[0], grid[1] * tile[1]
    for content, whole, part in zip(fitted_size(image, canvas), canvas, tile, strict=True):
        assert 1 <= content <= whole and (whole - content) // 2 < part


@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_an_image_keeps_its_aspect_ratio_and_fills_one_side(image, box):
    fitted = fitted_size(image, box)
    assert any(side == limit for side, limit in zip(fitted, box, strict=True))
    scale = min(box[0] / image[0], box[1] / image[1])
    for side, original in zip(fitted, image, strict=True):
        assert side == 1 or abs(side - original * scale) <= 0.5 + 1e-9 * side


@given(tiles, limits, st.data())
def test_images_not_larger_than_a_tile_are_not_cut(tile, limit, data):
    image = tuple(data.draw(st.integers(1, side)) for side in tile)
    assert tile_grid(image, tile, limit) == (1, 1)


@pytest.mark.parametrize(
    ("image", "limit", "grid"),
    [
        ((448, 448), 12, (2, 2)),
        ((460, 460), 12, (2, 2)),  # not nine tiles for the last pixels
        ((1080, 1920), 12, (3, 4)),
        ((1920, 1080), 12, (4, 3)),
        ((10_000, 20), 6, (6, 1)),
        ((1, 1), 12, (1, 1)),
        ((5000, 5000), 1, (1, 1)),
    ],
)
def test_grids_of_224_pixels(image, limit, grid):
    assert tile_grid(image, (224, 224), limit) == grid


@given(st.tuples(*[st.integers(1, 4)] * 2), st.tuples(*[st.integers(1, 5)] * 2))
def test_tiles_hold_every_pixel_once_row_by_row(grid, tile):
    canvas = torch.arange(2 * grid[0] * tile[0] * grid[1] * tile[1]).view(2, grid[0] * tile[0], -1)
    found = cut(canvas, grid)
    assert len(found) == grid[0] * grid[1] and all(t.shape == (2, *tile) for t in found)
    lines = [torch.cat(found[row * grid[1] : (row + 1) * grid[1]], dim=2) for row in range(grid[0])]
    assert torch.equal(torch.cat(lines, dim=1), canvas)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def images():
    return VLMambaImageProcessor(size={"height": 16, "width": 16})


@given(sides=st.tuples(*[st.integers(1, 120)] * 2), limit=st.integers(1, 12), do_pad=st.booleans())
@FEW
def test_views_are_the_whole_image_and_then_the_tiles_of_a_larger_one(images, sides, limit, do_pad):
    image, options = noise(*sides), {"do_pad": do_pad, "return_tensors": "pt"}
    views = images(image, max_patches=limit, **options)["pixel_values"]
    assert torch.equal(views[:1], images(image, **options)["pixel_values"])
    rows, columns = tile_grid(sides, (16, 16), limit)
    if rows * columns > 1:
        canvas = {"height": 16 * rows, "width": 16 * columns}
        whole = images(image, size=canvas, **options)["pixel_values"][0]
        torch.testing.assert_close(views[1:], torch.stack(cut(whole, (rows, columns))))
        without = images(image, max_patches=limit, use_thumbnail=False, **options)["pixel_values"]
        assert torch.equal(without, views[1:])
    else:
        assert len(views) == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 1), (17, 16), (200, 300)])
@pytest.mark.parametrize("thumbnail", [True, False])
def test_the_number_of_views_is_known_from_the_size(images, size, thumbnail):
    options = {"max_patches": 9, "use_thumbnail": thumbnail}
    found = images([noise(*size), noise(8, 8)], return_tensors="pt", **options)
    assert found["num_patches"].tolist() == [images.get_number_of_image_patches(*size, options), 1]
    assert found["pixel_values"].shape == (found["num_patches"].sum(), 3, 16, 16)
    assert torch.isfinite(found["pixel_values"]).all()


def test_without_tiles_nothing_is_said_of_them(images):
    assert set(images(noise(200, 200), return_tensors="pt")) == {"pixel_values"}


def test_other_tiles_than_square_ones():
    images = VLMambaImageProcessor(size={"height": 8, "width": 16}, max_patches=4)
    assert images(noise(16, 32), return_tensors="pt")["pixel_values"].shape == (5, 3, 8, 16)


@pytest.mark.parametrize("value", [0, -3])
def test_a_wrong_limit_is_named(images, value):
    for call in (
        lambda: images(noise(9, 9), max_patches=value),
        lambda: VLMambaImageProcessor(max_patches=value),
        lambda: images.get_number_of_image_patches(9, 9, {"max_patches": value}),
    ):
        with pytest.raises(ValueError, match=f"max_patches is {value}, expected a whole number of tiles, 1 or more"):
            call()


def test_an_image_without_pixels_is_named(images):
    with pytest.raises(ValueError, match=r"image 1 has shape \(3, 0, 9\), expected at least one pixel"):
        images([noise(9, 9), noise(0, 9)])


def test_tiles_need_resizing(images):
    with pytest.raises(ValueError, match="max_patches is 4 and do_resize False, expected True"):
        images(noise(9, 9), max_patches=4, do_resize=False)


@pytest.fixture(scope="module")
def processor():
    """At most six tiles."""
    made = tiny_processor()
    made.image_processor.max_patches = 6
    return made


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def read(processor, texts: list[str], pictures: list | None, **options) -> dict[str, torch.Tensor]:
    batch = processor(images=pictures, text=texts, padding=True, return_tensors="pt", **options)
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def generate(model, inputs: dict, **options) -> torch.Tensor:
    out = model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})
    return out[:, inputs["input_ids"].shape[1] :]


def test_every_view_has_its_placeholders(processor):
    large, small = noise(32, 48), noise(9, 9)
    texts = [QUESTION, "<|user|> how many ?<|assistant|>", "<|user|><image> is <image> ?<|assistant|>"]
    for pictures in ([large, small, large], [[large], [], [small, large]]):
        inputs = read(processor, texts, pictures)
        assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [4 * 7, 0, 4 * (1 + 7)]
        assert inputs["pixel_values"].shape[0] == 7 + 1 + 7 and "num_patches" not in inputs
    told = processor._get_num_multimodal_tokens([(32, 48), (9, 9)])
    assert told["num_image_tokens"] == [28, 4] and told["num_image_patches"] == [7, 1]
    told = processor._get_num_multimodal_tokens([(32, 48)], max_patches=2)
    assert told["num_image_tokens"] == [12]


def test_an_image_processor_without_tiles_makes_one_view():
    images = CLIPImageProcessor(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
    processor = VLMambaProcessor(images, tiny_tokenizer(), num_image_tokens=4)
    assert processor._get_num_multimodal_tokens([(32, 48)])["num_image_tokens"] == [4]
    assert (read(processor, [QUESTION], [noise(32, 48)])["input_ids"] == processor.image_token_id).sum() == 4


def test_a_call_has_the_last_word(processor):
    for options in ({"max_patches": 1}, {"images_kwargs": {"max_patches": 1}}):
        assert len(read(processor, [QUESTION], [noise(32, 48)], **options)["pixel_values"]) == 1


def test_images_are_counted_not_views(processor):
    with pytest.raises(ValueError, match=r"the text has 1 <image> placeholder\(s\), but 2 image\(s\) are given"):
        read(processor, [QUESTION], [noise(40, 40), noise(9, 9)])


def test_other_tiles_than_the_prompt_has_room_for_name_both_numbers(processor, model):
    inputs = read(processor, [QUESTION], [noise(32, 48)])
    with pytest.raises(ValueError, match="28 image placeholder tokens, but the images give 24 features"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][1:])


def test_the_limit_is_saved(processor, tmp_path):
    processor.save_pretrained(tmp_path / "both")
    processor.image_processor.save_pretrained(tmp_path / "images")
    loaded = AutoProcessor.from_pretrained(tmp_path / "both")
    assert isinstance(loaded, VLMambaProcessor) and loaded.image_processor.max_patches == 6
    assert AutoImageProcessor.from_pretrained(tmp_path / "images").max_patches == 6
    expected = read(processor, [QUESTION], [noise(50, 30)])
    for key, value in read(loaded, [QUESTION], [noise(50, 30)]).items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({}, {}),
        ({"use_cache": False}, {}),
        ({"prefill_chunk_size": 7}, {}),
        ({"num_beams": 3}, {"num_beams": 3, "use_cache": False}),
    ],
    ids=["cache", "no cache", "in pieces", "beams"],
)
def test_a_padded_batch_of_different_tile_counts_answers_as_each_item_alone(processor, model, options, alone):
    pictures = [noise(32, 48, 1), noise(9, 9, 2), noise(100, 12, 3)]
    texts = [QUESTION, QUESTION, "<|user|><image> how many things are there ?<|assistant|>"]
    together = generate(model, read(processor, texts, pictures), **options)
    assert len({tuple(row) for row in together.tolist()}) == 3
    for row, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        assert torch.equal(together[row], generate(model, read(processor, [text], [picture]), **alone)[0]), text


def test_a_tiled_image_can_be_read_once_for_several_questions(processor, model):
    beginning, rests = "<|user|><image>", [" what is this ?<|assistant|>", " how many things are there ?<|assistant|>"]
    picture = noise(32, 48)
    state = model.prefix_state(**read(processor, [beginning], [picture]))
    together = generate(model, read(processor, rests, None), prefix=state)
    for row, rest in enumerate(rests):
        assert torch.equal(together[row], generate(model, read(processor, [beginning + rest], [picture]))[0]), rest


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_several_encoders_see_the_same_tiles(strategy):
    images = CobraImageProcessor(size={"height": 16, "width": 16}, resize_strategy=strategy)
    found = images([noise(32, 48), noise(9, 9)], max_patches=6, return_tensors="pt")
    assert found["num_patches"].tolist() == [7, 1] and found["pixel_values"].shape == (8, 6, 16, 16)


def test_the_pipeline_reads_tiles(processor, tmp_path):
    tiny_model().float().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("image-text-to-text", model=str(tmp_path))
    seen = []
    pipe.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    image = Image.new("RGB", (48, 32), (200, 30, 30))
    for picture in (image, image.resize((9, 9))):
        chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": " what ?"}]}]
        assert pipe(text=chat, generate_kwargs={"max_new_tokens": 1}, return_full_text=False)[0]["generated_text"]
    assert seen[0] - seen[1] == 6 * 4
