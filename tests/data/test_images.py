# SPDX-License-Identifier: Apache-2.0
"""Every kind of image file, compared pixel by pixel with what a viewer shows."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlmamba.data.images import ImageError, load_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def stored(image: Image.Image, format: str = "PNG", mode: str | None = None, **options) -> io.BytesIO:
    """The image as a file of a format; `mode` is what Pillow must find in it."""
    file = io.BytesIO()
    image.save(file, format, **options)
    if mode:
        assert Image.open(io.BytesIO(file.getvalue())).mode == mode
    return io.BytesIO(file.getvalue())


def shown(file: io.BytesIO) -> list[tuple[int, ...]]:
    image = load_image(file)
    assert image.mode == "RGB"
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


def row(mode: str, *pixels) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value,) * 3 for value in values]


@pytest.mark.parametrize("kind", [str, "path", "file"])
def test_a_path_or_a_file(kind, tmp_path):
    path = tmp_path / "a b.png"
    row("RGB", RED, BLUE).save(path)
    source = {str: str(path), "path": path, "file": io.BytesIO(path.read_bytes())}[kind]
    assert load_image(source).getpixel((1, 0)) == BLUE


def test_rgb_and_grey_keep_their_values():
    assert shown(stored(row("RGB", RED, (1, 2, 3)), mode="RGB")) == [RED, (1, 2, 3)]
    assert shown(stored(row("L", 0, 7, 255), mode="L")) == grey(0, 7, 255)


def test_one_bit():
    assert shown(stored(row("1", 0, 255), mode="1")) == [BLACK, WHITE]


def test_transparency_lies_over_white():
    pixels = row("RGBA", (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51))
    assert shown(stored(pixels, mode="RGBA")) == [RED, WHITE, (204, 204, 204)]
    assert shown(stored(row("LA", (0, 255), (0, 0), (0, 51)), mode="LA")) == grey(0, 255, 204)


def test_a_transparent_colour_of_rgb_and_grey():
    assert shown(stored(row("RGB", RED, BLUE), mode="RGB", transparency=RED)) == [WHITE, BLUE]
    assert shown(stored(row("L", 10, 20), mode="L", transparency=10)) == grey(255, 20)


def palette_image() -> Image.Image:
    image = row("P", 0, 1, 2)
    image.putpalette([*RED, *GREEN, *BLUE])
    return image


def test_palette():
    assert shown(stored(palette_image(), mode="P")) == [RED, GREEN, BLUE]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(format):
    assert shown(stored(palette_image(), format, transparency=1)) == [RED, WHITE, BLUE]


def test_palette_with_alpha_values():
    assert shown(stored(palette_image(), mode="P", transparency=bytes([255, 0, 51]))) == [
        RED,
        WHITE,
        (204, 204, 255),
    ]


def test_cmyk():
    pixels = row("CMYK", (0, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0))
    assert shown(stored(pixels, "TIFF", mode="CMYK")) == [WHITE, BLACK, RED]
    big = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(np.subtract(shown(stored(big, "JPEG", mode="CMYK", quality=100))[0], RED)).max() <= 3


def test_other_colour_spaces():
    # Pillow 12 cannot read again what it stores of YCbCr uncompressed
    image = load_image(stored(Image.new("YCbCr", (8, 8), (76, 85, 255)), "TIFF", compression="jpeg"))
    assert np.abs(np.subtract(image.getpixel((0, 0)), RED)).max() <= 2
    assert load_image(stored(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF", mode="LAB")).mode == "RGB"


SIXTEEN = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format):
    assert shown(stored(Image.fromarray(SIXTEEN), format)) == grey(0, 1, 128, 255)


def test_sixteen_bit_big_endian():
    image = Image.frombytes("I;16B", (4, 1), SIXTEEN.astype(">u2").tobytes())
    assert shown(stored(image, "TIFF", mode="I;16B")) == grey(0, 1, 128, 255)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 257, 65535], [0, 1, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([0, 500_000, 1_000_000], [0, 128, 255]),
    ],
    ids=["16 bits", "negative", "32 bits"],
)
def test_integers(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.int32))
    assert shown(stored(image, "TIFF", mode="I")) == grey(*expected)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 51.0, 200.0], [0, 51, 200]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([1000.0, 1000.0, 1000.0], [0, 0, 0]),
        ([float("nan"), 0.2, float("inf")], [0, 51, 255]),
        ([float("nan")] * 3, [0, 0, 0]),
    ],
    ids=["unit", "bytes", "other", "constant", "not finite", "nothing finite"],
)
def test_floats(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert shown(stored(image, "TIFF", mode="F")) == grey(*expected)


# where the red corner, stored at the top left, is shown
CORNERS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation(orientation, format):
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    upright = load_image(stored(image, format, exif=exif, **options))
    assert upright.size == ((2, 3) if orientation >= 5 else (3, 2))
    right, bottom = CORNERS[orientation]
    assert upright.getpixel((right * (upright.width - 1), bottom * (upright.height - 1))) == RED


def test_damaged_exif_is_no_obstacle():
    image = stored(row("RGB", RED, BLUE), exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert shown(image) == [RED, BLUE]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    file = stored(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(file).n_frames == 2
    assert shown(io.BytesIO(file.getvalue())) == [RED] * 16


@pytest.mark.parametrize("size", [(1, 1), (10000, 20), (20, 10000)])
def test_odd_sizes(size):
    image = load_image(stored(Image.new("RGB", size, RED)))
    assert image.size == size and image.getpixel((size[0] - 1, size[1] - 1)) == RED


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def refused(path, *words: str) -> None:
    with pytest.raises(ImageError) as error:
        load_image(path)
    assert isinstance(error.value, ValueError)
    message = str(error.value)
    assert repr(str(path)) in message and "\n" not in message
    for word in words:
        assert word in message


def test_missing_file(tmp_path):
    refused(str(tmp_path / "none.png"), "no such file")


def test_directory(tmp_path):
    refused(str(tmp_path), "directory")


def test_empty_file(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    refused(str(path), "empty")


def test_not_an_image(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("this is a text")
    refused(str(path), "not an image")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("fraction", [0.5, 0.95])
def test_truncated(format, fraction, tmp_path):
    data = stored(noise(), format).getvalue()
    path = tmp_path / "half"
    path.write_bytes(data[: int(len(data) * fraction)])
    refused(str(path), "truncated or damaged")


def test_damaged_checksum(tmp_path):
    data = bytearray(stored(noise()).getvalue())
    data[len(data) // 2] ^= 255
    path = tmp_path / "damaged.png"
    path.write_bytes(data)
    refused(str(path), "damaged")


def test_a_null_byte_in_the_name():
    refused("a\0b.png", "null byte")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no read permission bits")
def test_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    row("RGB", RED).save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        # the superuser may read everything
        monkeypatch.setattr("builtins.open", denied)
    refused(str(path), "permission")


def denied(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000], ids=["Pillow warns", "Pillow refuses"])
def test_decompression_bomb(side, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    refused(str(path), str(side * side), str(Image.MAX_IMAGE_PIXELS))


def test_a_file_object_has_a_name_in_errors_too(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("this is a text")
    with path.open("rb") as file, pytest.raises(ImageError, match=r"text\.png.*not an image"):
        load_image(file)
