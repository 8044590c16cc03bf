# SPDX-License-Identifier: Apache-2.0
"""Pictures of orders."""

import pytest
from PIL import Image

from vlmamba.scans import get_scan, list_scans
from vlmamba.scans.picture import draw, places, save

KINDS_SHOWN = ["zigma8", "es2d_step2", "local_w2", "registers_3", "interleave_2modalities", "msvmamba_low2", "vivim3"]


@pytest.mark.parametrize("name", [*KINDS_SHOWN, "plainmamba4_directions", "raster+local_w3"])
def test_every_order_has_a_panel(name):
    scan = get_scan(name)
    figure = draw(scan, *((2, 3, 4) if scan.kind == "video" else (3, 5)))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == scan.num_paths
    assert name in figure.get_suptitle() and "3 x" in figure.get_suptitle()


def test_padded_steps_are_noted():
    titles = [axes.get_title() for axes in draw(get_scan("es2d_step2"), 3, 5).axes]
    assert titles == ["0", "1: 3 padded steps", "2: 2 padded steps", "3: 4 padded steps"]
    # the end of a shorter order is no padding
    assert [axes.get_title() for axes in draw(get_scan("atrous_step2"), 3, 5).axes] == ["0", "1", "2", "3"]


def test_one_position_can_be_drawn():
    for name in ("cross_scan", "atrous_step2", "plainmamba4_directions"):
        draw(get_scan(name), 1, 1)


def test_steps_are_lines_and_jumps_are_dashed():
    jumps, walks = draw(get_scan("raster"), 3, 4).axes[0].collections[1:]
    assert (len(jumps.get_segments()), len(walks.get_segments())) == (2, 9)


@pytest.mark.parametrize("name", [name for name in list_scans() if get_scan(name).kind != "labels"])
def test_every_row_has_a_place_of_its_own(name):
    scan = get_scan(name)
    grid = (2, 3, 4) if scan.kind == "video" else (3, 4)
    where = places(scan, grid)
    assert len({tuple(place) for place in where.tolist()}) == len(where) == scan.num_rows(*grid)


def test_a_picture_is_a_small_file(tmp_path):
    save(get_scan("hilbert"), (8, 8), tmp_path / "hilbert.png")
    with Image.open(tmp_path / "hilbert.png") as picture:
        assert min(picture.size) > 100
    assert (tmp_path / "hilbert.png").stat().st_size < 50_000
