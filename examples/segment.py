# SPDX-License-Identifier: Apache-2.0
"""A head of transformers on an encoder of ours: tell lying from standing bars, pixel by pixel, in a few seconds.

python examples/segment.py
"""

import torch
from transformers import AutoConfig, UperNetConfig, UperNetForSemanticSegmentation

import vlmamba  # noqa: F401 - makes the encoders known to transformers

SIZE, BACKGROUND, LYING, STANDING = 64, 0, 1, 2


def scene(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy picture `[3, SIZE, SIZE]` of a lying and a standing bar, and the class of every pixel."""
    pixels = 0.3 * torch.randn(3, SIZE, SIZE, generator=generator)
    labels = torch.full((SIZE, SIZE), BACKGROUND)
    for kind, height, width in ((LYING, 8, 24), (STANDING, 24, 8)):
        top = torch.randint(SIZE - height, (), generator=generator)
        left = torch.randint(SIZE - width, (), generator=generator)
        area = (slice(top, top + height), slice(left, left + width))
        labels[area] = kind
        pixels[:, *area] += torch.rand(3, 1, 1, generator=generator) + 0.5
    return pixels, labels


def scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`[count, 3, SIZE, SIZE]` pictures and `[count, SIZE, SIZE]` classes."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.stack(part) for part in zip(*(scene(generator) for _ in range(count)), strict=True))


@torch.no_grad()
def accuracy(model: UperNetForSemanticSegmentation) -> float:
    """Share of the bars' pixels, in pictures never seen, that are told right."""
    pixels, labels = scenes(32, seed=1)
    drawn = labels != BACKGROUND
    return (model.eval()(pixels).logits.argmax(1)[drawn] == labels[drawn]).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    # any other encoder by its model_type, though each learns at a pace of its own
    backbone = AutoConfig.for_model(
        "vmamba", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], out_indices=[1, 2, 3, 4], image_size=SIZE
    )
    config = UperNetConfig(backbone_config=backbone, hidden_size=32, num_labels=3, use_auxiliary_head=False)
    model = UperNetForSemanticSegmentation(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    print(f"before: {accuracy(model):.0%} of the bars' pixels")
    for step in range(120):
        pixels, labels = scenes(8, seed=100 + step)
        loss = model.train()(pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"after: {accuracy(model):.0%}")


if __name__ == "__main__":
    main()
