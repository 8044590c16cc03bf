# SPDX-License-Identifier: Apache-2.0
"""Image files as a viewer would show them."""

import contextlib
import os
import re
import warnings
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NUMERIC_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class ImageError(ValueError):
    """An image file that cannot be shown; the message names the file and what is wrong with it."""


def load_image(path_or_file: str | os.PathLike | BinaryIO) -> Image.Image:
    """Read an image upright and in RGB, as a viewer would show it.

    The EXIF orientation is applied, an animation gives its first frame, and transparency lies over white.
    Grey images of more than 8 bits are scaled by their range: integers from 0..65535, floats from 0..1 or
    0..255; if they do not keep to it, from their smallest to their largest value.

    Args:
        path_or_file: path of the file, or a file open for reading bytes.

    Returns:
        The image in mode "RGB", fully loaded.

    Raises:
        ImageError: the file is missing, unreadable, empty, truncated, not an image, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.

    Example:
        >>> load_image("photo.jpg").size
    """
    if not isinstance(path_or_file, (str, os.PathLike)):
        return _read(path_or_file, repr(getattr(path_or_file, "name", path_or_file)))
    path = os.fspath(path_or_file)
    name = repr(path)
    try:
        # on Windows, opening a directory is reported as a missing permission
        if os.path.isdir(path):
            raise IsADirectoryError
        with open(path, "rb") as file:
            return _read(file, name)
    except ImageError:
        raise
    # ValueError: a null byte in the path
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read image {name}: {_file_problem(error)}") from error


def _file_problem(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a directory, not an image file"
    if isinstance(error, PermissionError):
        return "permission to read the file is denied"
    return getattr(error, "strerror", None) or str(error)


def _read(file: BinaryIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return _to_rgb(_upright(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        problem = _bomb_problem(error)
    except UnidentifiedImageError:
        problem = "the file is empty" if _is_empty(file) else "it is not an image, or a damaged one"
    # decoders raise almost anything on broken data: OSError, SyntaxError, EOFError, struct.error, ...
    except Exception as error:
        problem = f"the file is truncated or damaged ({error})"
    raise ImageError(f"cannot read image {name}: {problem}")


def _bomb_problem(error: Exception) -> str:
    pixels = re.search(r"\d+", str(error))
    count = pixels.group() if pixels else "too many"
    return f"it has {count} pixels, more than the limit of {Image.MAX_IMAGE_PIXELS} (a decompression bomb?)"


def _is_empty(file: BinaryIO) -> bool:
    with contextlib.suppress(OSError):
        file.seek(0)
        return not file.read(1)
    return False


def _upright(image: Image.Image) -> Image.Image:
    # unlike ImageOps.exif_transpose this does not write the EXIF anew, which damaged EXIF prevents
    orientation = None
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _NUMERIC_MODES:
        return _scale_to_8_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = _value_range(finite, image.mode) if finite.size else (0.0, 1.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scaled = (values - low) / (high - low) * 255
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _value_range(values: np.ndarray, mode: str) -> tuple[float, float]:
    """The values that are shown black and white."""
    low, high = float(values.min()), float(values.max())
    for limit in (1.0, 255.0) if mode == "F" else (65535.0,):
        if low >= 0 and high <= limit:
            return 0.0, limit
    return (low, high) if high > low else (low, low + 1)
