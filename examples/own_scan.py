# SPDX-License-Identifier: Apache-2.0
"""Bring your own scan order: register a table, and every encoder and connector takes it by name.

python examples/own_scan.py
"""

import torch

import vlmamba


def spiral(height: int, width: int) -> torch.Tensor:
    """Rings from the outside in, and the way back."""
    rows, order = torch.arange(height * width).view(height, width), []
    while rows.numel():
        order.append(rows[0])
        rows = rows[1:].t().flip(0)  # what is left, turned so that the next side comes first
    inward = torch.cat(order)
    return torch.stack([inward, inward.flip(0)])


def main() -> None:
    scan = vlmamba.register_scan(vlmamba.Scan("spiral", 2, "rings from the outside in, and back", spiral))
    print(scan.paths(3, 4)[0].tolist())

    config = vlmamba.VLMambaConfig(
        vision_config={"model_type": "vim", "image_size": 64, "num_hidden_layers": 2},
        projector_config={"scan": "spiral"},
        text_config={"model_type": "mamba", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2},
    )
    model = vlmamba.VLMambaForConditionalGeneration(config)
    features = model.get_image_features(torch.randn(1, 3, 64, 64)).pooler_output[0]
    print("image features", tuple(features.shape))


if __name__ == "__main__":
    main()
