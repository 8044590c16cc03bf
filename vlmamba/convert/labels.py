# SPDX-License-Identifier: Apache-2.0
"""Names of classes that checkpoints number."""

from transformers import PreTrainedConfig


def label_names(num_labels: int) -> dict[int, str] | None:
    """ImageNet's class names in timm's order and words, for the data sets that have so many classes; else None."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_labels})
    if subset is None:
        return None
    names = ImageNetInfo(subset)
    return {i: names.index_to_description(i) for i in range(num_labels)}


def name_labels(config: PreTrainedConfig) -> None:
    """Give the config's classes ImageNet's names, if it has as many."""
    if (names := label_names(config.num_labels)) is not None:
        config.id2label = names
        config.label2id = {name: i for i, name in names.items()}
