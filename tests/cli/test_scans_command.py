# SPDX-License-Identifier: Apache-2.0
"""`vlmamba scans`: the list, an order as step numbers, a picture, and the one line about every mistake."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vlmamba.cli import scans as command
from vlmamba.cli.main import app
from vlmamba.scans import get_scan, list_scans


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["scans", *map(str, arguments)])


def answered(result: Result) -> str:
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result, words: str) -> None:
    """One line on stderr, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and result.stderr.startswith(f"Error: {words}"), result.stderr


def test_all_are_listed_in_a_line_each():
    header, *lines = answered(run()).splitlines()
    assert header.split() == ["name", "orders", "kind", "description"]
    assert [line.split()[0] for line in lines] == list_scans()
    assert "zigma8                                 8  grid        row snake and column snake" in "\n".join(lines)


def test_the_list_is_there_for_programs():
    found = json.loads(answered(run("--json")))
    assert {entry["name"]: entry["num_paths"] for entry in found}["vivim3"] == 3
    assert set(found[0]) == {"name", "num_paths", "kind", "description"}


def test_an_order_is_written_as_step_numbers():
    assert answered(run("hilbert", "--size", "2x4")) == (
        "hilbert, 2 x 4: Hilbert curve of any size (gilbert)\n"
        "\n"
        "order 0\n"
        " 0 3 4 7\n"
        " 1 2 5 6\n"
        "jumps: 0; longest step: 1; neighbours are read 1.6 steps apart on average, 3 at most\n"
    )


def test_padded_steps_and_unread_rows_are_shown():
    text = answered(run("es2d_step2", "--size", "3x3"))
    assert text.count("order") == 4
    assert " 0 . 1\n . . .\n 2 . 3\n" in text
    assert " . . .\n . 0 .\n . . .\n3 of 4 steps are padded\n" in text


def test_frames_tokens_scales_and_labels_are_shown():
    assert " 0 2   1 3\n" in answered(run("vivim3", "--size", "2x1x2"))
    assert " 0 1\n 3 4\n 2\n" in answered(run("vim_middle_cls", "--size", "2X2"))
    assert " 3/4/11  2/6/9\n 1/5/10  0/7/8\n" in answered(run("msvmamba_low2", "--size", "4x4"))
    assert "order 3\n0 4 2 3\n" in answered(run("plainmamba4_directions", "--size", "2x2"))


def test_the_default_size_fits_the_kind():
    assert answered(run("raster")).startswith("raster, 8 x 8:")
    assert answered(run("vivim3")).startswith("vivim3, 3 x 4 x 4:")


def test_a_combination_and_a_single_order_can_be_shown():
    found = json.loads(answered(run("zigma8[3]+local_w5", "--size", "2x3", "--json")))
    assert found["size"] == [2, 3] and found["rows"] == 6 and found["picture"] is None
    assert found["paths"] == get_scan("zigma8[3]+local_w5").paths(2, 3).tolist()
    assert found["locality"][0] == {"jumps": 0, "largest_step": 1, "mean_distance": 11 / 7, "largest_distance": 3}


def test_a_grid_too_wide_for_the_terminal_is_not_broken(monkeypatch):
    monkeypatch.setattr(command, "NO_LIMIT", 60)
    text = answered(run("raster", "--size", "2x30"))
    assert "(too wide for 60 columns: draw it with --out FILE)" in text and " 0  1" not in text


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(tmp_path, suffix):
    path = tmp_path / f"cross.{suffix}"
    assert answered(run("cross_scan", "--size", "3x5", "--out", path)) == f"{path}: cross_scan on 3 x 5\n"
    if suffix == "png":
        with Image.open(path) as picture:
            assert picture.width > 3 * picture.height
    assert path.stat().st_size > 1000


def test_a_picture_may_be_described_too(tmp_path):
    path = tmp_path / "raster.png"
    assert json.loads(answered(run("raster", "--out", path, "--json")))["picture"] == str(path)
    assert path.exists()


def test_unknown_names_are_answered_with_the_nearest():
    refused(run("hilbrt"), "argument NAME: unknown scan 'hilbrt' (did you mean 'hilbert'?); `vlmamba scans` lists all")
    refused(run("qqq"), "argument NAME: unknown scan 'qqq'; `vlmamba scans` lists all")
    refused(run("zigma8[8]"), "argument NAME: scan 'zigma8' has orders 0 to 7, got 8")
    refused(run("raster+vivim3"), "argument NAME: scans of different rows cannot be combined: raster (grid), vivim3")


@pytest.mark.parametrize("size", ["8", "0x3", "axb", "3x", "x3", "", "-1x3", "2x3x4", "3 x 4", "1e2x3", "٣x٣"])
def test_bad_sizes_are_refused(size):
    refused(run("raster", f"--size={size}"), f"--size {size!r}: expected height x width, each 1 or more, such as 6x8")


def test_a_video_wants_frames():
    refused(
        run("vivim3", "--size", "3x4"), "--size '3x4': expected frames x height x width, each 1 or more, such as 2x3x4"
    )


def test_huge_sizes_are_refused(tmp_path):
    refused(run("raster", "--size", "9999x9999"), "--size '9999x9999': 99980001 positions, expected at most 262144")
    result = run("raster", "--size", "200x200", "--out", tmp_path / "x.png")
    refused(result, "--size '200 x 200': 40000 positions, expected at most 16384 to draw")


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    for name in ("picture.gif", "picture"):
        refused(
            run("raster", "--out", tmp_path / name), f"--out '{tmp_path / name}': expected a file name that ends in"
        )
    path = tmp_path / "nowhere" / "x.png"
    refused(run("raster", "--out", path), f"--out '{path}': it cannot be written (No such file or directory)")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    refused(run("raster", "--out", folder), f"--out '{folder}': it cannot be written (Is a directory)")


def test_options_want_a_name():
    refused(run("--size", "3x4"), "--size: expected together with a NAME")
    refused(run("--out", "x.png"), "--out: expected together with a NAME")


def test_help_teaches():
    text = run("--help").stdout
    assert "vlmamba scans hilbert --size 6x8" in text and "--out" in text
