# SPDX-License-Identifier: Apache-2.0
"""Orders that depend on the image: int64 `[B, T]`, a row of each image at every step, -1 where a step is padded."""

import torch


def by_score(scores: torch.Tensor, descending: bool = True) -> torch.Tensor:
    """The rows of each image by their score; of equal ones the earlier row first.

    Args:
        scores: `[B, L]`, such as a saliency per patch.
        descending: highest score first, else lowest.

    Returns:
        int64 `[B, L]`.
    """
    _check_scores("by_score", scores)
    return scores.argsort(dim=1, descending=descending, stable=True)


def shuffled(
    batch: int, length: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A random order for each image (RSMamba's shuffled route, arXiv:2403.19654).

    Args:
        batch: B, the number of images.
        length: L, the number of rows.
        generator: makes the orders repeatable; it must be of `device`.
        device: of the orders.

    Returns:
        int64 `[B, L]`.
    """
    if batch < 0 or length < 0:
        raise ValueError(f"shuffled: batch is {batch} and length {length}, expected 0 or more")
    return torch.rand(batch, length, generator=generator, device=device).argsort(dim=1)


def strongest(scores: torch.Tensor, count: int, pad: bool = False) -> torch.Tensor:
    """The `count` rows of each image with the highest scores, in the order of the rows: a sparse scan.

    For the order of their scores take `by_score(scores)[:, :count]`.

    Args:
        scores: `[B, L]`.
        count: how many rows are kept, 1 to L.
        pad: fill up to L steps with -1.

    Returns:
        int64 `[B, count]`, or `[B, L]` with `pad`.
    """
    _check_scores("strongest", scores)
    length = scores.shape[1]
    if not 1 <= count <= length:
        raise ValueError(f"strongest: count is {count}, expected 1 to {length}, the number of rows")
    kept = by_score(scores)[:, :count].sort(dim=1).values
    return torch.nn.functional.pad(kept, (0, length - count), value=-1) if pad else kept


def inverse(order: torch.Tensor, length: int | None = None) -> torch.Tensor:
    """The step at which each row is read, -1 for rows that are not.

    For an order of all rows, `take(take(x, order), inverse(order))` is x.

    Args:
        order: int64 `[B, T]`, no row twice.
        length: L, the number of rows; None for T.

    Returns:
        int64 `[B, L]`.
    """
    length = order.shape[-1] if length is None else length
    _check_order("inverse", order, length)
    steps = torch.arange(order.shape[1], device=order.device).expand_as(order)
    found = order.new_full((order.shape[0], length + 1), -1)  # the last column takes padded steps
    return found.scatter(1, order.remainder(length + 1), steps)[:, :length]


def take(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """What each image's order reads, 0 at padded steps.

    Args:
        x: `[B, L, D]`.
        order: int64 `[B, T]`.

    Returns:
        `[B, T, D]`, differentiable in x.
    """
    if x.dim() != 3:
        raise ValueError(f"take: x has shape {tuple(x.shape)}, expected (batch, rows, channels)")
    _check_order("take", order, x.shape[1], x.shape[0])
    read = x.gather(1, order.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[2]))
    return read * (order >= 0).unsqueeze(-1)


def put(y: torch.Tensor, order: torch.Tensor, length: int) -> torch.Tensor:
    """Every step's value back at the row it was read from: the sum of all its visits, 0 where there was none.

    Args:
        y: `[B, T, D]`.
        order: int64 `[B, T]`.
        length: L, the number of rows.

    Returns:
        `[B, L, D]`, differentiable in y.
    """
    if y.dim() != 3 or y.shape[:2] != order.shape:
        raise ValueError(f"put: y has shape {tuple(y.shape)} and order {tuple(order.shape)}, expected y[:, :, 0] alike")
    _check_order("put", order, length)
    rows = order.remainder(length + 1).unsqueeze(-1).expand_as(y)  # one more row takes padded steps
    return y.new_zeros(y.shape[0], length + 1, y.shape[2]).scatter_add(1, rows, y)[:, :length]


def _check_scores(function: str, scores: torch.Tensor) -> None:
    if scores.dim() != 2:
        raise ValueError(f"{function}: scores has shape {tuple(scores.shape)}, expected (batch, rows)")


def _check_order(function: str, order: torch.Tensor, length: int, batch: int | None = None) -> None:
    if order.dim() != 2 or batch not in (None, order.shape[0]):
        expected = f"({'batch' if batch is None else batch}, steps)"
        raise ValueError(f"{function}: order has shape {tuple(order.shape)}, expected {expected}")
    if order.dtype != torch.int64:
        raise ValueError(f"{function}: order has dtype {order.dtype}, expected torch.int64")
    # elsewhere, looking at the values would make the device wait
    if order.device.type == "cpu" and order.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in order.aminmax())
        if low < -1 or high >= length:
            raise ValueError(f"{function}: order has rows from {low} to {high}, expected -1 to {length - 1}")
