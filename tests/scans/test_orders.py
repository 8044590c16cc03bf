# SPDX-License-Identifier: Apache-2.0
"""Every registered order: against verified tables, against its definition, and the laws of its kind."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmamba.scans import get_scan, list_scans

FIXTURE = Path(__file__).parents[1] / "fixtures" / "scan_paths.json"
VERIFIED = json.loads(FIXTURE.read_text())
SIDES = st.integers(1, 17)
MERGED = [name for name in list_scans() if get_scan(name).kind not in ("labels", "scales")]


def grids(name: str) -> st.SearchStrategy:
    video = get_scan(name).kind == "video"
    return st.tuples(*[st.integers(1, 6)] * 3) if video else st.tuples(SIDES, SIDES)


def with_grids(test):
    """Run a test of a name and a grid on many grids of each of the names."""

    @settings(max_examples=10, deadline=None)
    @given(data=st.data())
    def on_many(name, data):
        test(name, data.draw(grids(name)))

    on_many.__name__ = test.__name__
    return on_many


# tables


@pytest.mark.parametrize("name", VERIFIED)
def test_orders_are_the_verified_ones(name):
    for size, orders in VERIFIED[name].items():
        longest = max(map(len, orders))
        expected = [order + [-1] * (longest - len(order)) for order in orders]
        assert get_scan(name).paths(*map(int, size.split("x"))).tolist() == expected, size


# laws


@pytest.mark.parametrize("name", list_scans())
@with_grids
def test_orders_keep_the_law_of_their_kind(name, grid):
    scan = get_scan(name)
    paths = scan.paths(*grid)
    assert paths.dtype == torch.int32 and paths.shape[0] == scan.num_paths and paths.min() >= -1
    visited = [order[order >= 0].tolist() for order in paths]
    everything = list(range(scan.num_rows(*grid)))
    if scan.kind == "labels":
        assert all(set(labels) <= {0, 1, 2, 3, 4} and labels.count(0) == 1 for labels in visited)
    elif scan.kind == "scales":
        low = math.prod(-(-side // 2) for side in grid)
        assert visited[0] == everything and sorted(visited[1]) == sorted(3 * list(range(low)))
    elif scan.kind == "parts":
        assert sorted(sum(visited, [])) == everything
    else:
        assert all(sorted(order) == everything for order in visited)


@pytest.mark.parametrize("name", MERGED)
@with_grids
def test_merging_what_was_gathered_gives_each_row_as_often_as_it_was_visited(name, grid):
    scan = get_scan(name)
    paths, length = scan.paths(*grid), scan.num_rows(*grid)
    visits = torch.bincount(paths[paths >= 0], minlength=length)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    gathered = scan.gather(x, *grid)
    assert gathered.shape == (2, *paths.shape, 3)
    torch.testing.assert_close(scan.merge(gathered, *grid), visits[:, None] * x)
    if scan.kind == "parts":
        assert (visits == 1).all()
    else:
        assert (visits == scan.num_paths).all()


@pytest.mark.parametrize("name", list_scans())
def test_one_position_is_enough(name):
    scan = get_scan(name)
    grid = (1, 1, 1) if scan.kind == "video" else (1, 1)
    assert scan.paths(*grid).shape[0] == scan.num_paths


@pytest.mark.parametrize("name", list_scans("grid"))
@pytest.mark.parametrize("grid", [(1, 9), (9, 1)])
def test_in_a_line_every_order_visits_all(name, grid):
    for order in get_scan(name).paths(*grid).tolist():
        assert sorted(row for row in order if row >= 0) == list(range(9))


CONTINUOUS = ["row_snake", "column_snake", "zigma8", "plainmamba4", "mhs_c", "mhs_s_spiral4", "spiral_in", "spiral_out"]


@pytest.mark.parametrize("name", CONTINUOUS)
@with_grids
def test_continuous_orders_never_leave_the_neighbourhood(name, grid):
    for order in get_scan(name).paths(*grid).tolist():
        assert all(length(a, b, grid[1]) == 1 for a, b in zip(order, order[1:], strict=False))


@pytest.mark.parametrize("name", ["hilbert", "hilbert_dihedral8"])
@with_grids
def test_a_hilbert_curve_has_one_diagonal_step_at_most(name, grid):
    for order in get_scan(name).paths(*grid).tolist():
        steps = [length(a, b, grid[1]) for a, b in zip(order, order[1:], strict=False)]
        assert steps.count(1) >= len(steps) - 1 and max(steps, default=1) <= 2


def length(a: int, b: int, width: int) -> int:
    return abs(a // width - b // width) + abs(a % width - b % width)


def test_no_two_of_the_eight_images_are_alike():
    for grid in ((8, 8), (6, 10), (5, 9)):
        assert get_scan("hilbert_dihedral8").paths(*grid).unique(dim=0).shape[0] == 8


@pytest.mark.parametrize("name", ["plainmamba4"])
@with_grids
def test_directions_say_how_a_step_was_reached(name, grid):
    names = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}
    for order, labels in zip(get_scan(name).paths(*grid), get_scan(f"{name}_directions").paths(*grid), strict=True):
        rows, columns = order // grid[1], order % grid[1]
        moves = zip(rows.diff().tolist(), columns.diff().tolist(), strict=True)
        assert labels.tolist() == [0, *(names[move] for move in moves)]


# definitions, followed step by step


def spiral_in(height: int, width: int) -> list[int]:
    top, bottom, left, right, order = 0, height - 1, 0, width - 1, []
    while top <= bottom and left <= right:
        order += [top * width + c for c in range(left, right + 1)]
        order += [r * width + right for r in range(top + 1, bottom + 1)]
        if bottom > top:
            order += [bottom * width + c for c in range(right - 1, left - 1, -1)]
        if right > left:
            order += [r * width + left for r in range(bottom - 1, top, -1)]
        top, bottom, left, right = top + 1, bottom - 1, left + 1, right - 1
    return order


def spiral_walk(height: int, width: int) -> list[int]:
    r, c = (height - 1) // 2, (width - 1) // 2
    order, turn = [r * width + c], 0
    while len(order) < height * width:
        for _ in range(turn // 2 + 1):
            down, right = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
            r, c = r + down, c + right
            if 0 <= r < height and 0 <= c < width:
                order.append(r * width + c)
        turn += 1
    return order


def radial(height: int, width: int, key) -> list[int]:
    def place(row: int) -> tuple:
        right, down = 2 * (row % width) - (width - 1), 2 * (row // width) - (height - 1)
        return key(right**2 + down**2, math.degrees(math.atan2(down, right)) % 360)

    return sorted(range(height * width), key=place)


def radial_rings(height: int, width: int) -> list[int]:
    return radial(height, width, lambda distance, angle: (distance, round(angle, 6)))


def radial_rays(height: int, width: int) -> list[int]:
    return radial(height, width, lambda far, angle: (int((angle + 22.5) // 45) % 8 if far else -1, far))


def local_w3_column_first_flip(height: int, width: int) -> list[int]:
    order = [
        r * width + c if r < height and c < width else -1
        for left in range(0, width, 3)
        for top in range(0, height, 3)
        for c in range(left, left + 3)
        for r in range(top, top + 3)
    ]
    return order[::-1]


def registers_3(height: int, width: int) -> list[int]:
    count = height * width
    order, step = list(range(count)), count // 4
    for index in range(3):
        order.insert((index + 1) * step + index, count + index)
    return order


DEFINITIONS = [spiral_in, spiral_walk, radial_rings, radial_rays, local_w3_column_first_flip, registers_3]


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.__name__)
@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES)
def test_orders_follow_their_definition(definition, height, width):
    assert get_scan(definition.__name__).paths(height, width)[0].tolist() == definition(height, width)


def test_a_general_skip_reads_every_phase():
    table = get_scan("atrous_step3").paths(6, 6)
    assert table.shape == (9, 4)
    assert table[5].tolist() == [8, 11, 26, 29]
