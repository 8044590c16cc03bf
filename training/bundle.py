# SPDX-License-Identifier: Apache-2.0
"""Make the folder that ships with the package from a trained one: weights in bfloat16, nothing of the training.

    python -m training.bundle runs/emoji_vlm vlmamba/assets/emoji-tiny

The config says float32: the weights are stored in half the space and computed with in full.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlmamba  # noqa: F401 - registers the models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="output folder of training.train_vlm")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(arguments.trained, dtype=torch.bfloat16)
    model.save_pretrained(arguments.out)
    model.config.dtype = torch.float32
    for part in (model.config.vision_config, model.config.text_config, model.config.projector_config):
        part.dtype = torch.float32
    model.config.save_pretrained(arguments.out)
    AutoProcessor.from_pretrained(arguments.trained).save_pretrained(arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.iterdir()) / 1e6
    print(f"{arguments.out}: {size:.1f} MB, {model.num_parameters() / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
