# SPDX-License-Identifier: Apache-2.0
"""Saved folders load with trust_remote_code=True in a process that never imported vlmamba, as does what it saves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import vlmamba
from tests.models.encoders import TINY
from tests.models.tiny import tiny_model, tiny_processor
from vlmamba.assets import bundled_model
from vlmamba.models.remote_code import SHIM, SHIM_SOURCE

ROOT = Path(__file__).parents[2]

# runs where nothing but transformers is imported; each line that it prints is checked below
STRANGER = """
import json, sys
from pathlib import Path
from PIL import Image
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, pipeline,
)

first, vlm, vim, fused, out = sys.argv[1:]
trust = {"trust_remote_code": True}
found = {}

def load(name, auto, folder):
    found[name] = auto.from_pretrained(folder, **trust)
    return found[name]

# whichever comes first has to bring the package in
autos = {"processor": (AutoProcessor, vlm), "image processor": (AutoImageProcessor, vim)}
if first in autos:
    load(first, *autos[first])
config = load("config", AutoConfig, vlm)
model = load("model", AutoModelForImageTextToText, vlm)
load("multimodal", AutoModelForMultimodalLM, vlm)
load("headless", AutoModel, vlm)
processor = load("processor", AutoProcessor, vlm)
load("tokenizer", AutoTokenizer, vlm)
load("image processor", AutoImageProcessor, vlm)
load("classifier", AutoModelForImageClassification, vim)
load("encoder", AutoModel, vim)
load("fused", AutoModel, fused)
found["backbone"] = AutoBackbone.from_config(AutoConfig.from_pretrained(vim, **trust), **trust)
image = Image.new("RGB", (30, 20), (200, 30, 30))
chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": " what ?"}]}]
for task in ("image-text-to-text", "any-to-any"):
    pipe = pipeline(task, model=vlm, **trust)
    answer = pipe(text=chat, generate_kwargs={"max_new_tokens": 3}, return_full_text=False)[0]["generated_text"]
    print("answer", json.dumps(answer))
print("label", pipeline("image-classification", model=vim, **trust)(image)[0]["label"])
model.save_pretrained(out), processor.save_pretrained(out)
found["classifier"].save_pretrained(out + "/encoder"), found["image processor"].save_pretrained(out + "/encoder")
load("model again", AutoModelForImageTextToText, out)
print(json.dumps({name: type(value).__name__ for name, value in found.items()}, sort_keys=True))
"""

# as where vlmamba is not installed
ALONE = """
import sys
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vlmamba":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Nowhere())
for auto in (AutoConfig, AutoModelForImageTextToText, AutoProcessor):
    try:
        auto.from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        print("ImportError", error)
"""

CLASSES = {
    "config": "VLMambaConfig",
    "model": "VLMambaForConditionalGeneration",
    "multimodal": "VLMambaForConditionalGeneration",
    "headless": "VLMambaModel",
    "processor": "VLMambaProcessor",
    "tokenizer": "TokenizersBackend",
    "image processor": "VLMambaImageProcessor",
    "classifier": "VimForImageClassification",
    "encoder": "VimModel",
    "fused": "FusedVisionModel",
    "backbone": "VimBackbone",
    "model again": "VLMambaForConditionalGeneration",
}


def python(code: str, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess:
    """Runs in a folder that is not the repository's, and keeps its copies of remote code there."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    tiny_model().float().save_pretrained(root / "vlm")
    tiny_processor().save_pretrained(root / "vlm")
    config = vlmamba.VimConfig(**TINY["vim"])
    vlmamba.VimForImageClassification(config).save_pretrained(root / "vim")
    vlmamba.VLMambaImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "vim")
    encoders = vlmamba.FusedVisionConfig(encoders=[config, config])
    vlmamba.FusedVisionModel(encoders).save_pretrained(root / "fused")
    return root


def test_a_process_that_never_imported_the_package_loads_runs_and_saves(folders, tmp_path):
    """What it saved is loaded by the next one; which class comes first, and so brings the package in, differs."""
    one, two = tmp_path / "one", tmp_path / "two"
    first = python(STRANGER, "processor", *(folders / f for f in ("vlm", "vim", "fused")), one, folder=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    second = python(STRANGER, "image processor", one, one / "encoder", folders / "fused", two, folder=tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert first.stdout == second.stdout
    *answers, label, classes = first.stdout.splitlines()
    assert answers[0] == answers[1] != 'answer ""' and label.startswith("label LABEL_")
    assert json.loads(classes) == CLASSES
    for folder in (one, one / "encoder", two):
        assert [path.name for path in folder.glob("*.py")] == [f"{SHIM}.py"]


def test_without_the_package_its_name_is_told(folders, tmp_path):
    done = python(ALONE, folders / "vlm", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        [line for line in done.stdout.splitlines() if "not found in your environment: vlmamba. Run" in line]
        == [line for line in done.stdout.splitlines() if line.startswith("ImportError")]
        != []
    )


def test_the_package_serves_without_asking_once_it_is_imported(folders):
    for options in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        config = AutoConfig.from_pretrained(folders / "vlm", **options)
        model = AutoModelForImageTextToText.from_pretrained(folders / "vlm", **options)
        processor = AutoProcessor.from_pretrained(folders / "vlm", **options)
        for found in (config, model, processor, processor.image_processor):
            assert type(found) is getattr(vlmamba, type(found).__name__)
            assert type(found)._auto_class is None


def test_every_class_that_a_folder_names_is_public(folders):
    named = set()
    for path in (*folders.rglob("*config.json"), *bundled_model().glob("*config.json")):
        saved = json.loads(path.read_text())
        named |= {reference for part in (saved, saved.get("image_processor", {})) for reference in _references(part)}
    assert len(named) >= 9
    assert all(hasattr(vlmamba, name.removeprefix(f"{SHIM}.")) for name in named), named


def _references(saved: dict) -> list[str]:
    return list(saved.get("auto_map", {}).values())


def test_the_bundled_folder_names_what_a_saved_one_does(folders):
    folder = bundled_model()
    assert (folder / f"{SHIM}.py").read_text() == (folders / "vlm" / f"{SHIM}.py").read_text() == SHIM_SOURCE
    for name in ("config.json", "processor_config.json"):
        bundled, saved = (json.loads((f / name).read_text()) for f in (folder, folders / "vlm"))
        assert _references(bundled) == _references(saved) != []
        assert bundled.get("image_processor", {}).get("auto_map") == saved.get("image_processor", {}).get("auto_map")


def test_a_config_inside_of_another_names_no_classes(folders):
    """Those of a folder would be looked for beside the other's."""
    vision = vlmamba.VimConfig.from_pretrained(folders / "vim")
    outer = vlmamba.FusedVisionConfig(encoders=[vision])
    assert "auto_map" not in json.dumps(outer.to_dict()) and "auto_map" in outer.to_json_string()
    assert outer.to_json_string().count("auto_map") == 1


def test_a_users_own_config_names_no_class_of_the_package(tmp_path):
    class OwnConfig(vlmamba.VimConfig):
        model_type = "own"

    OwnConfig(**TINY["vim"]).save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_adapters_of_such_a_folder_are_as_before(folders, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folders / "vlm")
    targets = r"model\.language_model\..*\.(in_proj|x_proj)"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    ids = torch.tensor([[5, 7, 8, 6]])
    with torch.inference_mode():
        expected = adapted(ids).logits
    base = AutoModelForImageTextToText.from_pretrained(folders / "vlm", trust_remote_code=True)
    again = PeftModel.from_pretrained(base, tmp_path).eval()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True).eval()
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, expected)
        assert torch.equal(loaded(ids).logits, expected)
