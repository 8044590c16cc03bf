# SPDX-License-Identifier: Apache-2.0
"""Heads and pipelines of transformers on our encoders, none of them written here; and our language model."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForObjectDetection as Detector
from transformers import (
    BitImageProcessor,
    ConditionalDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from tests.close import assert_close
from tests.models.encoders import TINY, four_stages, model_of
from tests.models.tiny import tiny_model
from vlmamba.models import ENCODERS

pytestmark = pytest.mark.parametrize("family", ENCODERS)
PICTURE = str(Path(__file__).parents[2] / "examples" / "banana.png")
CLASSES = 3
ATTENTION = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}


def upernet(family):
    config = UperNetConfig(
        backbone_config=four_stages(family), hidden_size=16, num_labels=CLASSES, auxiliary_in_channels=None
    )
    config.auxiliary_in_channels = config.backbone_config.stage_widths[-2]
    config.auxiliary_channels = 8
    return UperNetForSemanticSegmentation(config), {"labels": torch.randint(0, CLASSES, (2, 64, 64))}


def masks():
    halves = torch.zeros(2, 64, 64)
    halves[0, :32], halves[1, 32:] = 1, 1
    return {"mask_labels": [halves, halves], "class_labels": [torch.tensor([0, 2])] * 2}


def maskformer(family):
    decoder = DetrConfig(d_model=32, decoder_layers=1, num_queries=4, **ATTENTION)
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": CLASSES}
    config = MaskFormerConfig(backbone_config=four_stages(family), decoder_config=decoder, **sizes)
    return MaskFormerForInstanceSegmentation(config), masks()


def mask2former(family):
    config = Mask2FormerConfig(
        backbone_config=four_stages(family),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_queries=4,
        train_num_points=16,
        num_labels=CLASSES,
    )
    return Mask2FormerForUniversalSegmentation(config), masks()


def detector(kind):
    def make(family):
        options = {"num_feature_levels": 4} if kind is DeformableDetrConfig else {}
        config = kind(
            backbone_config=four_stages(family),
            use_timm_backbone=False,
            backbone=None,
            use_pretrained_backbone=False,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            num_queries=4,
            num_labels=CLASSES,
            **ATTENTION,
            **options,
        )
        corners = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.5, 0.4, 0.3]])
        boxes = {"class_labels": torch.tensor([0, 2]), "boxes": corners}
        return Detector.from_config(config), {"labels": [boxes, boxes]}

    return make


HEADS = {
    "upernet": upernet,
    "maskformer": maskformer,
    "mask2former": mask2former,
    "detr": detector(DetrConfig),
    "conditional_detr": detector(ConditionalDetrConfig),
    "deformable_detr": detector(DeformableDetrConfig),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_trains_one_step_and_is_saved_and_loaded(tmp_path, family, head):
    torch.manual_seed(0)
    model, labels = HEADS[head](family)
    images = torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loss = model.train()(images, **labels).loss
    loss.backward()
    backbone = {name: p for name, p in model.named_parameters() if "backbone" in name or "encoder.embeddings" in name}
    assert torch.isfinite(loss) and any(p.grad is not None and p.grad.any() for p in backbone.values())
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        ours, theirs = model(images), again(images)
    for name in ("logits", "class_queries_logits", "masks_queries_logits", "pred_boxes"):
        if getattr(ours, name, None) is not None:
            assert_close(name, getattr(ours, name), getattr(theirs, name).double())


def test_pipelines_classify_and_extract_features(tmp_path, family):
    model = model_of(family, "ForImageClassification").eval()
    model.save_pretrained(tmp_path)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    found = pipeline("image-classification", model=str(tmp_path))(PICTURE, top_k=5)
    assert {one["label"] for one in found} == {f"LABEL_{i}" for i in range(5)}
    extract = pipeline("image-feature-extraction", model=str(tmp_path), pool=True)
    assert len(extract(PICTURE)[0]) == model.config.pooled_size


def test_a_pipeline_segments(tmp_path, family):
    for name, processor in (("upernet", SegformerImageProcessor), ("mask2former", Mask2FormerImageProcessor)):
        HEADS[name](family)[0].save_pretrained(tmp_path / name)
        processor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / name)
        found = pipeline("image-segmentation", model=str(tmp_path / name))(PICTURE, subtask="semantic")
        assert found and all(one["mask"].size == Image.open(PICTURE).size for one in found)


def test_our_language_model_reads_it(family):
    fields = {**TINY[family], "model_type": family, "image_size": 64, "initializer_range": 0.5}
    model = tiny_model(vision_config=fields)
    count = model.config.image_seq_length
    ids = torch.tensor([[1, 7, *[4] * count, 8, 9]])
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        first, second = (model(input_ids=ids, pixel_values=one[None]).logits for one in images)
        both = model(input_ids=ids.expand(2, -1), pixel_values=images).logits
    assert not torch.equal(first[:, -1], second[:, -1])
    assert_close("batch", both, torch.cat([first, second]))
