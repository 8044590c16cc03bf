# SPDX-License-Identifier: Apache-2.0
"""A scan's table, its parts and combinations, and the registry."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vlmamba import scans
from vlmamba.scans import Scan, get_scan, list_scans, register_scan


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(scans, "_REGISTRY", dict(scans._REGISTRY))
    monkeypatch.setattr(scans, "_made", dict(scans._made))


# tables


def test_tables_are_built_once_and_follow_the_device():
    scan = get_scan("cross_scan")
    assert scan.paths(3, 5) is scan.paths(3, 5)
    assert scan.paths(3, 5, device="meta").is_meta


@pytest.mark.parametrize("name", ["cross_scan", "hilbert", "local_w2+raster"])
def test_tables_that_only_pretend_are_not_kept(name):
    scan = get_scan(name)
    with FakeTensorMode():
        assert isinstance(scan.paths(2, 9), FakeTensor)
    with torch.device("meta"):
        assert type(scan.paths(2, 9)) is torch.Tensor and not scan.paths(2, 9).is_meta


def test_a_table_first_made_in_inference_mode_serves_training():
    scan = Scan("fresh", 1, "row by row", lambda h, w: torch.arange(h * w)[None])
    with torch.inference_mode():
        scan.paths(2, 3)
    assert not scan.paths(2, 3).is_inference()


@pytest.mark.parametrize("name", ["cross_scan", "zigma8", "local_w2+raster[0]"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_graph_may_hold_several_tables(name, dynamic):
    first, second = get_scan(name), get_scan("plainmamba4")

    def read(x: torch.Tensor) -> torch.Tensor:
        grid = (2, x.shape[1] // 2)
        return first.gather(x, *grid).sum(1), first.gather(2 * x, *grid), second.gather(x, *grid)

    compiled = torch.compile(read, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (6, 8):
        x = torch.randn(2, length, 3, requires_grad=True)
        torch.testing.assert_close(compiled(x), read(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_holds_the_table(strict):
    class Read(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return get_scan("hilbert").gather(x, 2, 5)

    x = torch.randn(1, 10, 2)
    program = torch.export.export(Read(), (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), Read()(x))


def test_a_build_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"scan 'flat': build gave shape \(6,\), expected \(1, steps\)"):
        Scan("flat", 1, "", lambda h, w: torch.arange(h * w)).paths(2, 3)
    with pytest.raises(ValueError, match=r"scan 'more': build gave shape \(1, 6\), expected \(2, steps\)"):
        Scan("more", 2, "", lambda h, w: torch.arange(h * w)[None]).paths(2, 3)
    with pytest.raises(ValueError, match="scan 'odd': kind is 'cube', expected one of grid, parts"):
        Scan("odd", 1, "", lambda h, w: torch.arange(h * w)[None], kind="cube")


def test_a_grid_of_other_sides_is_named():
    with pytest.raises(ValueError, match="the grid is 0 x 4, expected at least 1 x 1"):
        get_scan("raster").paths(0, 4)
    with pytest.raises(ValueError, match="scan 'vivim3': the grid is 3 x 4, expected frames, height and width"):
        get_scan("vivim3").paths(3, 4)
    with pytest.raises(ValueError, match="scan 'raster': the grid is 2 x 3 x 4, expected height and width"):
        get_scan("raster").num_rows(2, 3, 4)
    for grid in ((2.5, 3), ("2", 3)):
        with pytest.raises(ValueError, match=f"scan 'raster': the grid is {grid[0]} x 3, expected whole numbers"):
            get_scan("raster").paths(*grid)
    assert get_scan("raster").paths(torch.tensor(2), np.int64(3)).shape == (1, 6)
    with pytest.raises(ValueError, match="scan 'raster': the grid is missing"):
        get_scan("raster").paths()


# gather and merge


def test_rows_and_steps_of_other_sizes_are_named():
    scan = get_scan("registers_3")
    with pytest.raises(ValueError, match=r"x has shape \(1, 6, 2\), expected \(batch, 9, channels\)"):
        scan.gather(torch.ones(1, 6, 2), 2, 3)
    with pytest.raises(ValueError, match=r"y has shape \(1, 9, 2\), expected \(batch, 1, 9, channels\)"):
        scan.merge(torch.ones(1, 9, 2), 2, 3)


@pytest.mark.parametrize("name", ["msvmamba_low2", "plainmamba4_directions"])
def test_what_does_not_read_the_same_rows_is_not_merged(name):
    with pytest.raises(ValueError, match=f"scan '{name}': its orders do not read the same rows"):
        get_scan(name).gather(torch.ones(1, 6, 2), 2, 3)


# one order of several


def test_layers_may_take_turns():
    scan = get_scan("zigma8")
    for index in range(8):
        part = scan.only(index)
        assert part.num_paths == 1 and part.paths(3, 5).tolist() == [scan.paths(3, 5)[index].tolist()]
        assert part is scan.only(index) is get_scan(f"zigma8[{index}]")
    for index in (-1, 8):
        with pytest.raises(ValueError, match=f"scan 'zigma8' has orders 0 to 7, got {index}"):
            scan.only(index)


def test_a_short_order_alone_has_its_own_length():
    scan = get_scan("atrous_step2")
    assert scan.paths(3, 5)[3].tolist() == [6, 8, -1, -1, -1, -1]
    assert scan.only(3).paths(3, 5).tolist() == [[6, 8]]
    # these padded steps are the scan's own
    assert get_scan("es2d_step2").only(3).paths(3, 5).tolist() == [[6, -1, 8, -1, -1, -1]]


def test_orders_may_be_joined_to_one():
    low = get_scan(["raster_reversed", "column", "column_reversed"]).joined()
    assert low.num_paths == 1 and low.kind == "repeats"
    assert low.paths(2, 2).tolist() == [[3, 2, 1, 0, 0, 2, 1, 3, 3, 1, 2, 0]]
    x = torch.randn(1, 4, 2)
    torch.testing.assert_close(low.merge(low.gather(x, 2, 2), 2, 2), 3 * x)


# combinations


def test_a_combination_holds_all_orders_padded_to_the_longest():
    scan = get_scan(["raster", "local_w2", "bidirectional"])
    assert scan.name == "raster+local_w2+bidirectional" and scan.num_paths == 4 and scan.kind == "grid"
    table = scan.paths(3, 5)
    assert table.shape == (4, 24)
    assert table[0].tolist() == [*range(15), *[-1] * 9]
    assert table[1].tolist() == get_scan("local_w2").paths(3, 5)[0].tolist()
    assert table[3].tolist() == [*range(14, -1, -1), *[-1] * 9]
    assert get_scan(("raster", "local_w2", "bidirectional")) is scan
    assert get_scan(["raster", "local_w2", "bidirectional"]).paths(3, 5) is table
    assert scan.only(0).paths(3, 5).tolist() == [[*range(15)]]


def test_scans_themselves_may_be_combined():
    mine = Scan("mine", 1, "backwards", lambda h, w: torch.arange(h * w).flip(0)[None])
    assert get_scan(mine) is mine is get_scan([mine])
    assert get_scan([mine, "atrous_step2"]).kind == "parts"
    assert get_scan([mine, "column"]).paths(2, 2).tolist() == [[3, 2, 1, 0], [0, 2, 1, 3]]


@pytest.mark.parametrize("names", [["raster", "vivim3"], ["registers_3", "registers_4"], ["raster", "vim_middle_cls"]])
def test_scans_of_other_rows_are_not_combined(names):
    with pytest.raises(ValueError, match=rf"scans of different rows cannot be combined: {names[0]} \("):
        get_scan(names)


# names


def test_windows_skips_and_registers_of_any_size_have_names():
    assert get_scan("local_w5_flip_nopad") is scans.local_windows(5, flip=True, pad=False)
    assert get_scan("local_w2_nopad_column_first") is get_scan("local_w2_column_first_nopad")
    assert get_scan("atrous_step3") is scans.atrous(3)
    assert get_scan("registers_12") is scans.registers(12)
    for make, words in (
        (scans.local_windows, "side is 0"),
        (scans.atrous, "step is 0"),
        (scans.registers, "count is 0"),
    ):
        with pytest.raises(ValueError, match=f"{words}, expected a whole number, 1 or more"):
            make(0)


def test_unknown_names_are_answered_with_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"unknown scan 'hilbrt' \(did you mean 'hilbert'\?\); expected one of anti"):
        get_scan("hilbrt")
    for name in ("zigzig", "", "local_w0", "raster[x]", "raster+", "+", "atrous_step-1"):
        with pytest.raises(ValueError, match="unknown scan"):
            get_scan(name)
    with pytest.raises(ValueError, match="sequence of names is empty"):
        get_scan([])
    for name in (None, 3, ["raster", None], [["raster"]]):
        with pytest.raises(ValueError, match="expected a name or a sequence of names"):
            get_scan(name)


def test_names_are_listed_by_kind():
    assert list_scans() == sorted(name for kind in scans.KINDS for name in list_scans(kind))
    assert list_scans(kind="labels") == ["plainmamba4_directions"]
    with pytest.raises(ValueError, match="kind is 'cube', expected one of grid, "):
        list_scans("cube")


def test_a_scan_can_be_registered_once(registry):
    mine = register_scan(Scan("last_first", 1, "backwards", lambda h, w: torch.arange(h * w).flip(0)[None]))
    assert get_scan("last_first") is mine and "last_first" in list_scans()
    assert get_scan("last_first+raster").paths(1, 2).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="'last_first' is registered already"):
        register_scan(mine)


@pytest.mark.parametrize("name", ["", "a+b", "a[0]"])
def test_a_name_must_not_read_as_parts(registry, name):
    with pytest.raises(ValueError, match="expected one without"):
        register_scan(Scan(name, 1, "", lambda h, w: np.arange(h * w)[None]))
