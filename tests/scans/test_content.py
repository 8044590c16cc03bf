# SPDX-License-Identifier: Apache-2.0
"""Orders that depend on the image."""

import pytest
import torch

from tests.close import assert_close
from vlmamba.scans import content

SCORES = torch.tensor([[0.1, 0.9, 0.5, 0.9], [3.0, 1.0, 2.0, 0.0]])


def test_equal_scores_keep_the_order_of_the_rows():
    assert content.by_score(SCORES).tolist() == [[1, 3, 2, 0], [0, 2, 1, 3]]
    assert content.by_score(SCORES, descending=False).tolist() == [[0, 2, 1, 3], [3, 1, 2, 0]]
    assert content.by_score(torch.zeros(1, 99)).tolist() == [[*range(99)]]


def test_a_generator_repeats_a_shuffle():
    orders = [content.shuffled(3, 50, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0][0], orders[0][1])
    assert (orders[0].sort(dim=1).values == torch.arange(50)).all()


def test_a_sparse_scan_keeps_the_strongest_rows_in_their_order():
    assert content.strongest(SCORES, 2).tolist() == [[1, 3], [0, 2]]
    assert content.strongest(SCORES, 3, pad=True).tolist() == [[1, 2, 3, -1], [0, 1, 2, -1]]
    assert content.strongest(SCORES, 4).tolist() == [[0, 1, 2, 3]] * 2


def test_what_is_taken_comes_back():
    x, order = torch.randn(2, 6, 3), content.shuffled(2, 6, torch.Generator().manual_seed(0))
    taken = content.take(x, order)
    assert torch.equal(taken[1, 4], x[1, order[1, 4]])
    assert torch.equal(content.put(taken, order, 6), x)
    assert torch.equal(content.take(taken, content.inverse(order)), x)
    assert torch.equal(content.inverse(content.inverse(order)), order)


def test_padded_steps_read_zero_and_write_nothing():
    x, order = torch.arange(1.0, 9).view(1, 4, 2), torch.tensor([[2, -1, 0]])
    taken = content.take(x, order)
    assert taken.tolist() == [[[5, 6], [0, 0], [1, 2]]]
    assert content.put(torch.ones(1, 3, 1), order, 4).flatten().tolist() == [1, 0, 1, 0]
    assert content.inverse(order, 4).tolist() == [[2, -1, 0, -1]]


def test_visits_of_one_row_are_summed():
    order = torch.tensor([[1, 1, 0]])
    assert content.put(torch.ones(1, 3, 1), order, 2).flatten().tolist() == [1, 2]


def test_gradients_go_to_the_rows_that_were_read():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([[2, -1, 0], [3, 1, -1]])
    assert torch.autograd.gradcheck(lambda x: content.put(content.take(x, order).tanh(), order, 4), x)
    content.take(x, order).sum().backward()
    assert x.grad[:, :, 0].tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]


def test_a_scan_over_taken_rows_is_the_scan_along_the_order():
    """Every image of a batch follows its own order through one kernel call."""
    from vlmamba.ops import selective_scan

    torch.manual_seed(0)
    x, dt = torch.randn(2, 7, 4), torch.rand(2, 7, 4)
    A, B, C = -torch.rand(4, 3), torch.randn(2, 7, 3), torch.randn(2, 7, 3)
    order = content.shuffled(2, 7, torch.Generator().manual_seed(1))
    together = content.put(
        selective_scan(*(content.take(v, order) for v in (x, dt)), A, *(content.take(v, order) for v in (B, C))),
        order,
        7,
    )
    for image in range(2):
        row = slice(image, image + 1)
        alone = selective_scan(x[row], dt[row], A, B[row], C[row], paths=order[image : image + 1].int())
        assert_close("image", together[row], alone)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: content.by_score(torch.ones(3)), r"by_score: scores has shape \(3,\), expected \(batch, rows\)"),
        (lambda: content.strongest(SCORES, 5), "strongest: count is 5, expected 1 to 4"),
        (lambda: content.strongest(SCORES, 0), "strongest: count is 0, expected 1 to 4"),
        (lambda: content.shuffled(-1, 3), "shuffled: batch is -1 and length 3"),
        (lambda: content.take(torch.ones(2, 3), order()), r"take: x has shape \(2, 3\), expected \(batch, rows, ch"),
        (lambda: content.take(torch.ones(3, 3, 1), order()), r"take: order has shape \(2, 3\), expected \(3, steps\)"),
        (
            lambda: content.take(torch.ones(2, 3, 1), order().int()),
            "take: order has dtype torch.int32, expected torch.i",
        ),
        (lambda: content.take(torch.ones(2, 2, 1), order()), "take: order has rows from 0 to 2, expected -1 to 1"),
        (lambda: content.put(torch.ones(2, 4, 1), order(), 3), r"put: y has shape \(2, 4, 1\) and order \(2, 3\)"),
        (lambda: content.put(torch.ones(2, 3, 1), order(), 2), "put: order has rows from 0 to 2, expected -1 to 1"),
        (lambda: content.inverse(order() - 3), "inverse: order has rows from -3 to -1"),
        (lambda: content.inverse(torch.arange(3)), r"inverse: order has shape \(3,\), expected \(batch, steps\)"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def order() -> torch.Tensor:
    return torch.arange(3).expand(2, -1)
