# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest
import torch

from tests import golden
from tests.close import VALUE, assert_close
from vlmamba import metrics

SCORES = golden.FOLDER / "fusion_metrics.json"
TRIPLES = json.loads(SCORES.read_text())["triples"] if SCORES.exists() else {}


def check(name: str, score: float, expected: float) -> None:
    ours, theirs = (torch.tensor(v, dtype=torch.float64) for v in (score, expected))
    assert_close(name, ours, theirs, VALUE)


def triple(*size: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))


@pytest.mark.parametrize("name", TRIPLES)
def test_scores_are_those_of_the_fields_own_code(name):
    with np.load(SCORES.with_suffix(".npz")) as arrays:
        images = [arrays[f"{name}/{part}"] for part in ("fused", "ir", "vis")]
    fused, official, matlab = images[0], TRIPLES[name]["cddfuse"], TRIPLES[name]["matlab"]
    official["SSIM"] = official["SSIM_data_range_2"]
    for score, value in metrics.fusion_scores(*images).items():
        check(score, value, official[score])
    check("SSIM", metrics.ssim(*images, data_range=255), official["SSIM_data_range_255"])
    usual = 10 * math.log10(255**2 / official["MSE"])
    check("PSNR", metrics.psnr(*images, peak=255), usual)
    # the other convention of AG, and bits where no grey level runs into the one below
    parts = math.prod(side - 1 for side in fused.shape)
    check("AG", metrics.average_gradient(fused) * fused.size / parts, round(matlab["AG"], 14))
    if all(image.max() < 255 for image in images):
        check("MI", metrics.mutual_information(*images, base=2), matlab["MI"])


def test_scores_of_an_image_counted_by_hand():
    image = np.array([[0, 10], [0, 10]])
    assert metrics.entropy(image) == 1  # two levels, half each
    assert metrics.standard_deviation(image) == 5
    assert metrics.spatial_frequency(image) == 10
    check("AG", metrics.average_gradient(image), 10 / math.sqrt(2))
    check("MI", metrics.mutual_information(image, image, image.T, base=2), 1.0)  # all of the one, none of the other
    assert metrics.correlation(image, image, image.T) == 0.5
    assert metrics.psnr(image, image, image + 10, peak=100) == 10 * math.log10(100**2 / 50)


def test_a_fused_image_that_equals_both_sources_is_perfect():
    image = triple(48, 56)[0]
    scores = metrics.fusion_scores(image, image, image)
    check("VIF", round(scores["VIF"], 9), 2.0)  # 1e-10 keeps its divisions finite
    check("SSIM", scores["SSIM"], 2.0)
    check("CC", scores["CC"], 1.0)
    check("MI", scores["MI"], 2 * scores["EN"] * math.log(2))
    assert scores["PSNR"] == math.inf and scores["SCD"] == 0
    assert 0.97 < scores["Qabf"] < 1


def test_arrays_tensors_and_the_order_of_the_sources_do_not_matter():
    fused, first, second = triple(44, 47)
    expected = metrics.fusion_scores(fused, first, second)
    floats = [torch.tensor(image, dtype=torch.float32)[None, None] for image in (fused, first, second)]
    assert metrics.fusion_scores(*floats) == expected
    for name, value in metrics.fusion_scores(fused, second, first).items():
        check(name, value, expected[name])
    assert all(type(value) is float for value in expected.values())


@pytest.mark.parametrize("level", [0, 7, 255])
def test_constant_images_have_scores(level):
    noise, constant = triple(44, 44)[0], np.full((44, 44), level)
    for images in ([constant, noise, noise], [noise, constant, noise], [constant] * 3):
        scores = metrics.fusion_scores(*images)
        assert not any(math.isnan(value) for value in scores.values()), scores
    alone = metrics.fusion_scores(constant, noise, noise)
    assert all(alone[name] == 0 for name in ("EN", "SD", "SF", "AG", "MI", "CC", "VIF"))
    black = np.zeros((44, 44))
    assert metrics.edge_transfer(noise, black, black) == 0
    assert metrics.psnr(black, noise, noise) == -math.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"first": np.zeros((44, 45))}, r"first has \(44, 45\) pixels and fused \(44, 44\), expected the same size"),
        ({"second": np.full((44, 44), np.nan)}, "second has values that are not finite"),
        ({"fused": np.zeros((3, 44, 44))}, r"fused has shape \(3, 44, 44\), expected one image of one channel"),
        ({"fused": np.zeros(44)}, r"fused has shape \(44,\), expected one image"),
        ({"second": np.full((44, 44), 256)}, "second has values 256 to 256, expected grey levels 0 to 255"),
        ({"first": np.full((44, 44), 0.5)}, "first has fractions of 0 to 1, expected .*: multiply by 255"),
        ({"first": np.zeros((44, 44), bool)}, "first has dtype bool, expected integers or floating point"),
    ],
    ids=str,
)
def test_images_that_cannot_be_scored_are_one_clear_line(change, words):
    images = dict(zip(("fused", "first", "second"), triple(44, 44), strict=True)) | change
    with pytest.raises(ValueError, match=words) as error:
        metrics.fusion_scores(**images)
    assert "\n" not in str(error.value)


def test_small_images_are_refused_where_a_score_has_no_room():
    for side, score in ((41, metrics.visual_information_fidelity), (7, metrics.ssim), (2, metrics.edge_transfer)):
        assert math.isfinite(score(*triple(side, side)))
        with pytest.raises(ValueError, match=f"with sides of {side} or more"):
            score(*triple(side, side - 1))
    with pytest.raises(ValueError, match="data_range is 0, expected a positive number"):
        metrics.ssim(*triple(8, 8), data_range=0)
