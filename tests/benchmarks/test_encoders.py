# SPDX-License-Identifier: Apache-2.0
"""The table of the encoders' costs: what is counted is counted right, and every model is in it."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks import costs, encoders, shapes
from benchmarks.__main__ import app
from vlmamba.models import ENCODERS
from vlmamba.ops import causal_conv1d, selective_scan

# multiply-adds in G at 224 pixels as their authors give them (they count scans and norms in ways of their own)
PUBLISHED = {
    "VMamba-T": 4.9,
    "MSVMamba-T": 4.6,
    "MambaVision-T": 4.4,
    "EfficientVMamba-T": 0.8,
    encoders.PEER: 4.6,
    "ViT-Ti/16 (timm)": 1.3,
}
NEAR = 0.1


class Ops(nn.Module):
    """Images of side 4 as 16 rows of 3 channels: two taps, then two orders of a scan with 5 states."""

    def __init__(self):
        super().__init__()
        self.taps = nn.Parameter(torch.zeros(3, 2))
        self.A = nn.Parameter(torch.zeros(2, 3, 5))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = causal_conv1d(image.flatten(2).transpose(1, 2), self.taps)
        paths = torch.arange(16, device=x.device).expand(2, -1)
        B = x.new_zeros(*x.shape[:2], 5)
        return selective_scan(x, x, self.A, B, B, self.A[..., 0], z=x, paths=paths)


def test_the_ops_of_this_library_are_counted():
    steps = 16 * 3
    assert costs.multiply_adds(Ops, 4) == (2 * 2 * steps + 2 * (9 * 5 + 1) * steps + steps) // 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_near_the_published_ones(name):
    if name in encoders.PEERS:
        pytest.importorskip("timm")
    counted = costs.multiply_adds(lambda: encoders.build(name, 224, None), 224) / 1e9
    assert abs(counted / PUBLISHED[name] - 1) < NEAR, counted


def test_what_training_keeps_is_what_was_saved_once():
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 7))
    # the activation keeps its input and the second layer its own; the image and the weights are there anyway
    assert costs.kept_for_backward(model, torch.randn(2, 3)) == 2 * (2 * 5) * 4


def test_every_family_has_its_row():
    assert set(encoders.PUBLISHED) >= set(ENCODERS)


def test_the_table_is_made(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(encoders, "OURS", {"Vim-T": "vim", "MambaVision-T": "mambavision"})
    monkeypatch.setattr(shapes, "QUICK_SIDES", [64])
    arguments = ["encoders", "--quick", "--rounds", "2", "--no-memory", "--out", str(tmp_path)]
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    content = json.loads((tmp_path / "encoders.json").read_text())
    (result,) = content["results"]
    names = {"Vim-T", "MambaVision-T", *encoders.PEERS}
    for measure in ("parameters", "multiply_adds", "seconds", "milliseconds", "kept"):
        assert set(result[measure]) == names and all(result[measure].values())
    assert set(result["ratios"]) == set(encoders.OURS) and set(result["ratios"]["Vim-T"]) == set(encoders.PEERS)
    table = (tmp_path / "encoders.md").read_text()
    assert all(f"| {name} |" in table for name in names)
