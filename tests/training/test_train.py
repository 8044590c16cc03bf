# SPDX-License-Identifier: Apache-2.0
"""The training scripts from end to end, on a dozen made-up drawings and models of a few thousand parameters."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from eval.emoji import answers, markdown, score
from tests.training.test_emoji_data import THINGS, draw
from training import bundle, train_encoder, train_tokenizer, train_vlm
from training.build_emoji import DRAWING_FEATURES, save
from training.common import parse_recipe
from training.patches import PatchNames

DATA = {"vendors": ["flat", "tall"], "seed": 1, "test_scenes": 4}
STEPS = {
    "max_steps": 6,
    "save_steps": 3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}


def run(script, recipe: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a script's `main` as the command line would."""
    path = Path(recipe["output_dir"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(sys, "argv", [script.__name__, "--recipe", str(path)])
    script.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with drawings, tokenizer, encoder and VLM, each trained for a few steps."""
    root = tmp_path_factory.mktemp("emoji")
    rows = [vars(draw(name, vendor)) for vendor in DATA["vendors"] for name in THINGS]
    save(rows, DRAWING_FEATURES, root / "drawings")
    data = {"folder": str(root), **DATA}
    out = {name: str(root / name) for name in ("tokenizer", "encoder", "vlm")}
    recipes = [
        (train_tokenizer, {"output_dir": out["tokenizer"], "vocab_size": 400, "data": {**data, "scenes": 60}}),
        (
            train_encoder,
            {
                "output_dir": out["encoder"],
                "model": {
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "image_size": 32,
                    "patch_size": 8,
                    "state_size": 4,
                },
                "data": data,
                "training": {"output_dir": out["encoder"], **STEPS, "max_steps": 3},
            },
        ),
        (
            train_vlm,
            {
                "output_dir": out["vlm"],
                "tokenizer": out["tokenizer"],
                "encoder": out["encoder"],
                "alignment": 0.5,
                "stage": "finetune",
                "model": {
                    "projector": {"projector_type": "vss_l2", "scan": "cross_scan", "state_size": 4},
                    "text": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
                },
                "data": {**data, "turns": 2},
                "training": {"output_dir": out["vlm"], **STEPS},
            },
        ),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for script, recipe in recipes:
            run(script, recipe, patch)
    return root


def test_a_resumed_run_equals_the_uninterrupted_one(trained, tmp_path, monkeypatch):
    recipe = yaml.safe_load((trained / "vlm.yaml").read_text())
    recipe["output_dir"] = recipe["training"]["output_dir"] = str(tmp_path / "again")
    shutil.copytree(trained / "vlm" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    run(train_vlm, recipe, monkeypatch)
    expected, ours = (load_file(folder / "model.safetensors") for folder in (trained / "vlm", tmp_path / "again"))
    assert expected.keys() == ours.keys()
    assert all(torch.equal(expected[key], ours[key]) for key in expected)
    assert len((tmp_path / "again" / "log.jsonl").read_text().splitlines()) >= 1


def test_a_run_can_stop_before_its_plan_ends(trained, tmp_path, monkeypatch):
    recipe = yaml.safe_load((trained / "vlm.yaml").read_text())
    recipe["output_dir"] = recipe["training"]["output_dir"] = str(tmp_path / "short")
    run(train_vlm, {**recipe, "stop_at": 3, "language": str(trained / "vlm")}, monkeypatch)
    ours, whole = (load_file(f / "model.safetensors") for f in (tmp_path / "short", trained / "vlm"))
    assert (tmp_path / "short" / "checkpoint-3").is_dir() and not (tmp_path / "short" / "checkpoint-6").exists()
    # the encoder is frozen, the language model started from another one
    assert all(torch.equal(ours[key], whole[key]) for key in whole if "vision_tower" in key)
    assert any(not torch.equal(ours[key], whole[key]) for key in whole if "language_model" in key)


def test_the_first_stage_trains_the_connector_alone(trained, tmp_path, monkeypatch):
    recipe = yaml.safe_load((trained / "vlm.yaml").read_text())
    recipe["output_dir"] = recipe["training"]["output_dir"] = str(tmp_path / "aligned")
    run(train_vlm, {**recipe, "stage": "align", "stop_at": 3, "language": str(trained / "vlm")}, monkeypatch)
    ours, whole = (load_file(f / "model.safetensors") for f in (tmp_path / "aligned", trained / "vlm"))
    changed = {key for key in whole if not torch.equal(ours[key], whole[key])}
    assert changed and all("multi_modal_projector" in key for key in changed)


def test_the_output_is_a_complete_model_folder(trained):
    model = AutoModelForImageTextToText.from_pretrained(trained / "vlm")
    processor = AutoProcessor.from_pretrained(trained / "vlm")
    image = Image.new("RGB", (40, 30), "red")
    rows = [
        {"image": image, "kind": "name", "question": "What is this?", "answer": "A pizza."},
        {"image": image, "kind": "exists", "question": "Is there a dog?", "answer": "No."},
    ]
    given = answers(model, processor, rows, 2, "test")
    assert all(isinstance(answer, str) and "<" not in answer for answer in given)


def test_bundling_halves_the_weights_and_keeps_the_answers_loadable(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bundle", str(trained / "vlm"), str(tmp_path / "bundled")])
    bundle.main()
    full, half = (load_file(f / "model.safetensors") for f in (trained / "vlm", tmp_path / "bundled"))
    kinds = {key.rpartition(".")[2]: tensor.dtype for key, tensor in half.items()}
    assert kinds["weight"] == torch.bfloat16 and kinds["A_log"] == torch.float32
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "bundled")
    assert model.dtype == torch.float32
    for key, tensor in full.items():
        torch.testing.assert_close(half[key].float(), tensor, rtol=1e-2, atol=1e-6)
    assert AutoProcessor.from_pretrained(tmp_path / "bundled").num_image_tokens == 16
    assert not list((tmp_path / "bundled").glob("checkpoint*"))


def test_patch_labels_follow_the_boxes(trained):
    from training.data.emoji_scenes import EmojiScenes, load_drawings
    from vlmamba import VimConfig

    drawings = load_drawings(trained / "drawings", DATA["vendors"])
    names = sorted(THINGS)
    config = VimConfig(image_size=64, patch_size=8)
    scenes = EmojiScenes(drawings, seed=3, size=64, length=20)
    patches = PatchNames(names, config)
    seen = 0
    for index in range(len(scenes)):
        scene = scenes.scene(index)
        labels = patches(scene).view(8, 8)
        for row in range(8):
            for column in range(8):
                centre = (column * 8 + 4, row * 8 + 4)
                inside = [o for o in scene.objects if 0 <= centre[0] - o.x < o.w and 0 <= centre[1] - o.y < o.h]
                label = int(labels[row, column])
                assert not (label == 0 and inside)
                if label > 0:
                    seen += 1
                    assert names[label - 1] in [o.drawing.name for o in scene.objects]
    assert seen > 100


def test_scores_are_counted_by_kind():
    rows = [
        {"kind": "name", "answer": "A pizza."},
        {"kind": "name", "answer": "A dog."},
        {"kind": "exists", "answer": "Yes."},
    ]
    table = score(rows, ["a pizza", "A cat.", "Yes."])
    assert table["name"] == {"accuracy": 0.5, "questions": 2} and table["exists"]["accuracy"] == 1
    assert table["mean over kinds"] == {"accuracy": 0.75, "questions": 3}
    text = markdown({"scenes_test": table, "scenes_openmoji": table, "blind": table})
    assert "| name | 2 | 50.0 % | 50.0 % | 50.0 % |" in text


def test_recipes_are_overridden_on_the_command_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "r.yaml"
    path.write_text("training: {max_steps: 5}\nseed: 1\n")
    monkeypatch.setattr(sys, "argv", ["x", "--recipe", str(path), "training.max_steps=7", "data.folder=here"])
    assert parse_recipe("", "") == {"training": {"max_steps": 7}, "seed": 1, "data": {"folder": "here"}}
    for arguments, words in (([str(path), "steps"], "not of the form key=value"), ([str(tmp_path / "no")], "no file")):
        monkeypatch.setattr(sys, "argv", ["x", "--recipe", *arguments])
        with pytest.raises(SystemExit) as error:
            parse_recipe("", "")
        assert error.value.code == 2 and words in capsys.readouterr().err
