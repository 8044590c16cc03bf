# SPDX-License-Identifier: Apache-2.0
"""`--tiles`: the model is shown as many views as asked for."""

import json
import shutil

import pytest

from vlmamba import VLMambaModel

from .command import answered, refused, run
from .conftest import QUESTION


@pytest.fixture
def views(monkeypatch) -> list[int]:
    """Numbers of views that models were given."""
    seen, encode = [], VLMambaModel.get_image_features

    def spy(self, pixel_values, **options):
        seen.append(len(pixel_values))
        return encode(self, pixel_values, **options)

    monkeypatch.setattr(VLMambaModel, "get_image_features", spy)
    return seen


def test_ask_and_chat_show_tiles(model_folder, red, views):
    for number in (1, 2, 9):
        answered(run("ask", red, QUESTION, "--tiles", number, "--model", model_folder))
    answered(run("chat", red, "--tiles", 4, "--model", model_folder, input=QUESTION + "\n"))
    # a square is no larger in two tiles than in one
    assert views == [1, 1, 5, 5]


def test_without_the_option_the_folder_says(model_folder, red, views, tmp_path):
    folder = tmp_path / "tiled"
    shutil.copytree(model_folder, folder)
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["max_patches"] = 4
    path.write_text(json.dumps(content))
    answered(run("ask", red, QUESTION, "--model", folder))
    answered(run("ask", red, QUESTION, "--tiles", 1, "--model", folder))
    assert views == [5, 1]


@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_tiles_must_be_positive(number, model_folder):
    refused(run("ask", "what?", "--tiles", number, "--model", model_folder), "--tiles", repr(number), "1 or more")
