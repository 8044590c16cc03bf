# SPDX-License-Identifier: Apache-2.0
"""The classifier script and the scan ablation, on a dozen made-up drawings and a folder of coloured squares."""

import copy
import json
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from tests.training.test_emoji_data import THINGS, draw
from training import ablate_scans, train_classifier
from training.build_emoji import DRAWING_FEATURES, save
from training.data.augmentation import Batches, TrainingImages, train_transform
from training.data.labelled_images import LabelledImages, RecipeError, load_folder
from training.train_classifier import build_model, train
from vlmamba import get_scan, list_scans

STEPS = {
    "max_steps": 6,
    "save_steps": 3,
    "logging_steps": 3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}
VMAMBA = {"model_type": "vmamba", "hidden_sizes": [16, 24], "depths": [1, 1], "patch_size": 8, "drop_path_rate": 0.1}
VIM = {"model_type": "vim", "hidden_size": 16, "num_hidden_layers": 2, "patch_size": 8, "state_size": 4}
VIT = {
    "model_type": "timm_wrapper",
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
AUGMENTATION = {"crop": "padded", "flip": True, "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def emoji(tmp_path_factory) -> dict:
    """A recipe over drawings of two known vendors and an unseen one."""
    root = tmp_path_factory.mktemp("emoji")
    rows = [vars(draw(name, vendor)) for vendor in ("flat", "tall", "other") for name in THINGS]
    save(rows, DRAWING_FEATURES, root / "drawings")
    data = {
        "source": "emoji",
        "folder": str(root),
        "image_size": 32,
        "vendors": ["flat", "tall"],
        "test_vendors": ["other"],
        "renderings": 2,
        "validation_renderings": 1,
        "test_renderings": 1,
        "seed": 3,
    }
    out = str(root / "run")
    return {
        "output_dir": out,
        "model": VMAMBA,
        "data": data,
        "augmentation": AUGMENTATION,
        "training": {"output_dir": out, **STEPS},
    }


@pytest.fixture(scope="module")
def trained(emoji) -> dict:
    """What one run of that recipe reports."""
    return train(emoji)


@pytest.fixture
def squares(tmp_path) -> Path:
    """A folder with class folders: six red and six blue squares."""
    for colour in ("blue", "red"):
        (tmp_path / "squares" / colour).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (20, 24), colour).save(tmp_path / "squares" / colour / f"{index}.png")
    return tmp_path / "squares"


def elsewhere(recipe: dict, folder: Path, **changes: object) -> dict:
    """The recipe with another output folder."""
    recipe = copy.deepcopy(recipe) | changes
    recipe["output_dir"] = recipe["training"]["output_dir"] = str(folder)
    return recipe


def test_a_run_reports_accuracy_size_and_time(emoji, trained):
    folder = Path(emoji["output_dir"])
    assert json.loads((folder / "result.json").read_text()) == trained
    assert trained["classes"] == len(THINGS) and trained["images_seen"] == 24 and trained["training_images"] == 48
    assert trained["accuracy"]["validation"]["images"] == 24 and trained["accuracy"]["other"]["images"] == 12
    for figures in trained["accuracy"].values():
        assert 0 <= figures["top1"] <= figures["top5"] <= 1
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [3, 6]
    assert 0 < log[0]["cpu_seconds"] < log[-1]["cpu_seconds"] == trained["cpu_seconds"]
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == emoji


def test_a_resumed_run_equals_the_uninterrupted_one(emoji, trained, tmp_path):
    recipe = elsewhere(emoji, tmp_path / "again")
    shutil.copytree(Path(emoji["output_dir"]) / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = train(recipe)
    assert train(recipe)["accuracy"] == again["accuracy"]  # done: nothing is left to train
    expected, ours = (load_file(Path(r["output_dir"]) / "model.safetensors") for r in (emoji, recipe))
    assert expected.keys() == ours.keys()
    assert all(torch.equal(expected[key], ours[key]) for key in expected)
    assert again["accuracy"] == trained["accuracy"]


def test_the_output_folder_serves_a_pipeline(emoji, trained):
    classify = pipeline("image-classification", model=emoji["output_dir"])
    answer = classify(Image.new("RGB", (50, 40), "red"))
    assert answer[0]["label"] in THINGS and len(answer) == 5


@pytest.mark.parametrize("model", [VIM, VIT], ids=["vim", "timm"])
def test_other_models_train_by_the_same_recipe(emoji, tmp_path, model):
    recipe = elsewhere(emoji, tmp_path / "run", model=model)
    recipe["training"]["max_steps"] = 1
    result = train(recipe)
    again = AutoModelForImageClassification.from_pretrained(recipe["output_dir"])
    assert again.num_parameters() == result["parameters"] and again.config.num_labels == len(THINGS)


def test_folders_train_by_epochs(squares, tmp_path):
    recipe = {
        "model": VMAMBA,
        "data": {"source": "folder", "folder": str(squares), "image_size": 16, "validation_share": 0.25},
        "augmentation": {"crop": "resized", "rand_augment": {"num_ops": 1}, "erase": 0.5},
        "training": {**STEPS, "max_steps": -1, "num_train_epochs": 2},
    }
    result = train(elsewhere(recipe, tmp_path / "run"))
    assert result["classes"] == 2 and result["training_images"] == 9
    assert result["accuracy"]["validation"]["images"] == 3
    # 18 images in batches of 4
    assert json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["step"] == 5


def test_saved_data_sets_with_own_columns_load(squares, tmp_path):
    rows = datasets.load_dataset("imagefolder", data_dir=str(squares))["train"]
    rows = rows.rename_columns({"image": "img", "label": "fine_label"})
    datasets.DatasetDict({"train": rows, "valid": rows.select(range(3))}).save_to_disk(tmp_path / "saved")
    data = {"folder": str(tmp_path / "saved"), "image_column": "img", "label_column": "fine_label"}
    splits = load_folder(data | {"validation": "valid", "test": "valid"})
    assert splits.names == ["blue", "red"] and len(splits.train) == 12 and len(splits.tests["valid"]) == 3
    assert splits.train.image(11).shape == (3, 24, 20) and splits.train.labels[11] == 1
    assert splits.train.image(11)[:, 0, 0].tolist() == [255, 0, 0]


def test_order_and_augmentation_depend_on_the_number_alone():
    class Processor:
        image_mean = image_std = [0.5] * 3

    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    images = LabelledImages("train", pixels, np.arange(5))
    transform = train_transform({"crop": "resized", "flip": True}, 8, Processor())
    data = TrainingImages(images, transform, 15, seed=1)
    orders = [[data.index(turn * 5 + i) for i in range(5)] for turn in range(3)]
    assert all(sorted(order) == list(range(5)) for order in orders) and len(set(map(tuple, orders))) > 1
    first = data[7]
    torch.rand(3)
    assert data[14]["labels"] == orders[2][4] and torch.equal(data[7]["pixel_values"], first["pixel_values"])
    batches = Batches({"mixup": 1.0, "label_smoothing": 0.1}, 5, seed=1)
    one, two = (batches([data[i] for i in (0, 1, 2)]) for _ in range(2))
    assert torch.equal(one["pixel_values"], two["pixel_values"]) and torch.equal(one["labels"], two["labels"])
    assert one["labels"].sum(1).tolist() == pytest.approx([1, 1, 1]) and one["labels"].min() > 0


def broken(squares: Path) -> dict:
    (squares / "red" / "3.png").write_bytes(b"no picture")
    return {}


DATA_ERRORS = {
    "no folder": (lambda folder: {"folder": str(folder / "none")}, "data.folder: no folder"),
    "no images": (lambda folder: {"folder": str(folder.parent / "empty")}, "no images in"),
    "column": (lambda folder: {"image_column": "img"}, "data.image_column is 'img', expected one of: image, label"),
    "split": (lambda folder: {"test": "test"}, "data.test is 'test', expected a split of the data set: train"),
    "source": (lambda folder: {"source": "web"}, "data.source is 'web', expected one of: folder, emoji"),
    "missing": (lambda folder: {"source": "emoji"}, "data: source 'emoji' needs vendors, test_vendors, renderings"),
    "unreadable": (broken, "data: image 9 of split 'train' cannot be read"),
}


@pytest.mark.parametrize("case", DATA_ERRORS)
def test_data_that_does_not_fit_is_one_line(squares, tmp_path, case, monkeypatch, capsys):
    change, words = DATA_ERRORS[case]
    (tmp_path / "empty").mkdir()
    data = {"source": "folder", "folder": str(squares), "image_size": 16, "validation": "train"} | change(squares)
    recipe = elsewhere({"model": VMAMBA, "data": data, "training": {**STEPS, "max_steps": 3}}, tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(sys, "argv", ["x", "--recipe", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as error:
        train_classifier.main()
    message = capsys.readouterr().err.splitlines()[-1]
    assert error.value.code == 2 and message.startswith("Error: ") and words in message


@pytest.mark.parametrize(
    ("section", "words"),
    [({"max_step": 3}, "training: .*max_step"), ({"eval_strategy": "never"}, "training: never is not a valid")],
)
def test_training_options_are_checked(emoji, tmp_path, section, words):
    recipe = elsewhere(emoji, tmp_path / "run")
    recipe["training"] |= section
    with pytest.raises(RecipeError, match=words):
        train(recipe)
    with pytest.raises(RecipeError, match="the recipe lacks data, training"):
        train({"model": VIM})


def test_a_class_that_training_lacks_is_named(squares, tmp_path):
    rows = datasets.load_dataset("imagefolder", data_dir=str(squares))["train"]
    words = rows.remove_columns("label").add_column("label", ["cat"] * 6 + ["dog"] * 6)
    other = rows.remove_columns("label").add_column("label", ["cat"] * 11 + ["owl"])
    datasets.DatasetDict({"train": words, "test": other}).save_to_disk(tmp_path / "saved")
    with pytest.raises(RecipeError, match=r"split 'test' has 1 class\(es\) that the 2 .* do not include: owl"):
        load_folder({"folder": str(tmp_path / "saved"), "test": "test"})


MODEL_ERRORS = {
    "unknown type": ({"model_type": "vmanba"}, "unknown 'vmanba'; did you mean vmamba"),
    "no type": ({}, "model.model_type: unknown None"),
    "language": ({"model_type": "mamba"}, "'mamba' has no image classifier"),
    "classes": ({**VIM, "num_labels": 7}, "model.num_labels is 7, but the training images have 3 classes"),
    "field": ({**VIM, "hiden_size": 7}, "vim has no 'hiden_size'; did you mean hidden_size?"),
    "value": ({**VIM, "patch_size": 0}, "patch_size is 0"),
    "timm": ({"model_type": "timm_wrapper", "architecture": "vit_none"}, "vit_none"),
}


@pytest.mark.parametrize("case", MODEL_ERRORS)
def test_a_model_that_does_not_exist_is_one_line(case):
    section, words = MODEL_ERRORS[case]
    with pytest.raises(RecipeError) as error:
        build_model(section, ["a", "b", "c"], 32)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_ablation_keeps_finished_rows_and_parameters_equal(emoji, tmp_path, monkeypatch):
    recipe = elsewhere(emoji, tmp_path / "table", scans={"cross": "cross_scan", "random": ["random_order_0"]})
    recipe |= {"num_paths": 4, "seeds": [0]}
    recipe["training"]["max_steps"] = 1
    ablate_scans.ablate(recipe)
    recipe["seeds"], calls = [0, 1], []
    monkeypatch.setattr(ablate_scans, "train", lambda own: calls.append(own) or train(own))
    rows = ablate_scans.ablate(recipe)
    assert [own["training"]["seed"] for own in calls] == [1, 1]
    assert {row["scan"] for row in rows} == {"cross", "random"} and len({row["parameters"] for row in rows}) == 1
    assert all(row["orders"] == 4 and len(row["other"]["each"]) == 2 for row in rows)
    assert json.loads((tmp_path / "table/table.json").read_text())["rows"] == rows
    lines = (tmp_path / "table/table.md").read_text().splitlines()
    assert lines[0].startswith("| scan | orders | parameters | validation top-1 | other top-1 |")
    assert len(lines) == 4 and all("±" in line for line in lines[2:])
    recipe["training"]["learning_rate"] = 1.0
    with pytest.raises(RecipeError, match="was trained by another recipe"):
        ablate_scans.ablate(recipe)


def test_orders_are_completed_by_reading_them_backwards():
    hilbert = ablate_scans.exactly(get_scan("hilbert"), 4).paths(4, 4)
    assert torch.equal(hilbert[0], hilbert[1].flip(0)) and torch.equal(hilbert[:2], hilbert[2:])
    assert torch.equal(
        ablate_scans.exactly(get_scan("cross_scan"), 2).paths(3, 5), get_scan("raster+column").paths(3, 5)
    )
    order = ablate_scans.random_order(1).paths(4, 6)[0]
    assert sorted(order.tolist()) == list(range(24)) and not torch.equal(order, order.sort().values)
    wrong = {"a": "hilbrt"}, {"a": list_scans("video")[0]}
    for scans, words in zip(({}, *wrong), ("no rows", "scans.a: ", "scans.a: .* is for 'video'"), strict=True):
        with pytest.raises(RecipeError, match=words):
            ablate_scans.scan_names({"scans": scans})
