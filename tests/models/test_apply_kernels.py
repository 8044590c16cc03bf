# SPDX-License-Identifier: Apache-2.0
"""transformers' models with Mamba layers, moved onto the kernel: the same answers, and right where theirs are not."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from tests.close import GRADIENT, VALUE, assert_close
from tests.models.families import CONFIGS, VOCABULARY, tiny_language_model
from vlmamba import apply_kernels
from vlmamba.layers.kernels import mixer_class
from vlmamba.layers.mixer import KernelMixer

FAMILIES = list(CONFIGS)
LENGTHS = (13, 9, 4)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, shape)


def moved(family: str, **changes) -> nn.Module:
    return apply_kernels(tiny_language_model(family, **changes))


def states_name(model: nn.Module) -> str:
    """What this transformers version and family call the states."""
    names = inspect.signature(type(model).forward).parameters
    return next(name for name in ("cache", "cache_params", "past_key_values") if name in names)


def run(model: nn.Module, ids: torch.Tensor, states=None, start: int = 0, **options):
    """Logits and states of tokens that begin at `start`."""
    name = states_name(model)
    if "position_ids" in inspect.signature(type(model).forward).parameters:
        options.setdefault("position_ids", torch.arange(start, start + ids.shape[1])[None])
    with torch.no_grad():
        out = model(ids, use_cache=True, **{name: states}, **options)
    return out.logits, out[name]


def linear_layers(states) -> list:
    return [layer for layer in states.layers if hasattr(layer, "recurrent_states")]


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, mask and positions of rows of `LENGTHS`."""
    ids, mask = torch.full((len(LENGTHS), LENGTHS[0]), 3), torch.zeros(len(LENGTHS), LENGTHS[0], dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        place = slice(LENGTHS[0] - length, None) if side == "left" else slice(length)
        ids[row, place], mask[row, place] = tokens(length), 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_steps_equal_transformers(family):
    stock = tiny_language_model(family)
    ours = apply_kernels(copy.deepcopy(stock))
    ids = tokens(2, 17)
    expected, theirs = run(stock, ids)
    logits, states = run(ours, ids)
    assert_close("prefill", logits, expected)
    for step in range(3):
        token = tokens(2, 1)
        expected, theirs = run(stock, token, theirs, 17 + step)
        logits, states = run(ours, token, states, 17 + step)
        assert_close(f"step {step}", logits, expected)
    for mine, other in zip(linear_layers(states), linear_layers(theirs), strict=True):
        if mine.recurrent_states[0] is not None:
            assert_close("conv state", mine.conv_states[0], other.conv_states[0])
            assert_close("state", mine.recurrent_states[0], other.recurrent_states[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_equals_transformers(family):
    stock = tiny_language_model(family).train()
    ours = apply_kernels(copy.deepcopy(stock))
    ids = tokens(2, 19)
    losses = [model(ids, labels=ids).loss for model in (stock, ours)]
    for loss in losses:
        loss.backward()
    assert_close("loss", losses[1], losses[0].detach())
    for (name, theirs), mine in zip(stock.named_parameters(), ours.parameters(), strict=True):
        assert (theirs.grad is None) == (mine.grad is None), name
        if theirs.grad is not None:
            assert_close(name, mine.grad, theirs.grad, GRADIENT)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_answers_as_each_item_alone(family, side):
    model = moved(family)
    ids, mask, positions = padded(side)
    options = {"position_ids": positions} if "position_ids" in inspect.signature(type(model).forward).parameters else {}
    logits, states = run(model, ids, attention_mask=mask, **options)
    for row in range(len(LENGTHS)):
        alone, single = run(model, ids[row : row + 1][mask[row : row + 1].bool()][None])
        assert_close("logits", logits[row][mask[row].bool()], alone[0])
        for mine, other in zip(linear_layers(states), linear_layers(single), strict=True):
            if other.recurrent_states[0] is not None:
                assert_close("conv state", mine.conv_states[0][row], other.conv_states[0][0])
                assert_close("state", mine.recurrent_states[0][row], other.recurrent_states[0][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_warm_cache_takes_several_tokens(family):
    model = moved(family)
    ids = tokens(2, 17)
    whole, last = run(model, ids)
    states, start = None, 0
    for length in (2, 1, 6, 8):
        logits, states = run(model, ids[:, start : start + length], states, start)
        assert_close("logits", logits, whole[:, start : start + length])
        start += length
    for mine, other in zip(linear_layers(states), linear_layers(last), strict=True):
        if mine.recurrent_states[0] is not None:
            assert_close("conv state", mine.conv_states[0], other.conv_states[0])
            assert_close("state", mine.recurrent_states[0], other.recurrent_states[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_and_without_cache_and_padding(family):
    model = moved(family)
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    ids, mask, _ = padded("left")
    options = {"max_new_tokens": 6, "do_sample": False}
    together = model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    for other in ({"use_cache": False}, {"cache_implementation": "static"}):
        again = model.generate(ids, attention_mask=mask, **options, **other)[:, ids.shape[1] :]
        assert torch.equal(together, again), other
    beams = [model.generate(ids, attention_mask=mask, num_beams=3, use_cache=use, **options) for use in (True, False)]
    assert torch.equal(*beams)
    for row, length in enumerate(LENGTHS):
        prompt = ids[row : row + 1, -length:]
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, length:]
        assert torch.equal(together[row], alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family):
    ids, gradients = tokens(2, 9), []
    for checkpointing in (False, True):
        model = moved(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(name, gradients[1][name], gradient, GRADIENT)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_and_autocast(family):
    model = moved(family).train()
    ids = tokens(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    stock = tiny_language_model(family)
    wide, errors = run(stock, ids)[0], []
    for half in (stock.bfloat16(), model.bfloat16().eval()):
        logits, states = run(half, ids[:, :11])
        last, _ = run(half, ids[:, 11:], states, 11)
        errors.append((torch.cat([logits, last], dim=1) - wide).abs().max() / wide.abs().max())
    # no worse than twice what transformers makes of it
    assert errors[1] <= 2 * errors[0] + VALUE[torch.bfloat16]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_of_a_mixer_is_called_as_a_module(family):
    model, seen = moved(family), set()
    mixers = [(name, module) for name, module in model.named_modules() if isinstance(module, KernelMixer)]
    assert mixers
    expected = set()
    for name, mixer in mixers:
        for part, module in mixer.named_modules():
            if isinstance(module, nn.Linear):
                expected.add(f"{name}.{part}")
                module.register_forward_hook(lambda *_, key=f"{name}.{part}": seen.add(key))
    for ids in (tokens(1, 5), tokens(1, 1)):
        run(model, ids)
        assert seen == expected
        seen.clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_may_be_modules_without_a_weight(family):
    """As quantized ones are."""
    model, ids = moved(family), tokens(2, 6)
    expected, _ = run(model, ids)
    for mixer in [module for module in model.modules() if isinstance(module, KernelMixer)]:
        for name, part in list(mixer.named_children()):
            if isinstance(part, nn.Linear):
                setattr(mixer, name, nn.Sequential(part))
    first, states = run(model, ids[:, :5])
    last, _ = run(model, ids[:, 5:], states, 5)
    assert_close("logits", torch.cat([first, last], dim=1), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_moved_model_is_copied_saved_and_pickled(family, tmp_path):
    model, ids = moved(family), tokens(1, 7)
    expected, _ = run(model, ids)
    assert apply_kernels(model) is model
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(next(m for m in again.modules() if isinstance(m, KernelMixer))) is mixer_class(family)
        assert torch.equal(run(again, ids)[0], expected)
    model.save_pretrained(tmp_path)
    loaded = apply_kernels(type(model).from_pretrained(tmp_path).eval())
    assert_close("logits", run(loaded, ids)[0], expected)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_h1"])
def test_weights_of_a_moved_model_can_stay_on_disk(family, tmp_path):
    model, ids = moved(family), tokens(1, 6)
    model.save_pretrained(tmp_path / "model")
    places = {name: "disk" if ".layers." in name else "cpu" for name, part in model.named_modules() if is_place(name)}
    options = {"device_map": places, "offload_folder": tmp_path / "off"}
    offloaded = apply_kernels(type(model).from_pretrained(tmp_path / "model", **options))
    expected, _ = run(model, ids)
    # accelerate's hooks keep the forward that they found; transformers' own would restart on the warm cache
    first, states = run(offloaded, ids[:, :4])
    second, _ = run(offloaded, ids[:, 4:], states, 4)
    assert_close("logits", torch.cat([first, second], dim=1), expected)
    assert any(parameter.is_meta for parameter in offloaded.parameters())


def is_place(name: str) -> bool:
    """Layers, and what stands beside them."""
    *parents, last = name.split(".")
    return last.isdigit() if "layers" in parents else len(parents) == (name != "lm_head") and last != "layers"


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_do_not_see_each_other(family):
    mixer = next(module for module in moved(family).modules() if isinstance(module, KernelMixer))
    hidden = torch.randn(1, 14, 16)
    seq_idx = torch.tensor([[0] * 5 + [1] * 9], dtype=torch.int32)
    with torch.no_grad():
        packed = mixer(hidden, seq_idx=seq_idx)
        for part in (slice(0, 5), slice(5, 14)):
            assert_close("part", packed[:, part], mixer(hidden[:, part]))
        # a gap of padding between them
        wide, numbers = torch.zeros(1, 17, 16), torch.zeros(1, 17, dtype=torch.int32)
        kept = torch.tensor([0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 16])
        wide[:, kept], numbers[:, kept] = hidden, seq_idx
        mask = torch.zeros(1, 17, dtype=torch.long).index_fill(1, kept, 1)
        assert_close("padded", mixer(wide, attention_mask=mask, seq_idx=numbers)[:, kept], packed)


@pytest.mark.parametrize("family", ["mamba", "zamba", "mamba2", "falcon_h1"])
def test_compiled_and_exported_models_hold_the_ops_as_nodes(family, monkeypatch):
    monkeypatch.delenv("VLMAMBA_BACKEND", raising=False)  # plain PyTorch puts its operators into the graph

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = moved(family)

        def forward(self, ids):
            return self.model(ids, use_cache=False).logits

    module, ids = Logits(), tokens(2, 9)
    with torch.no_grad():
        expected = module(ids)
        assert_close("compiled", torch.compile(module, fullgraph=True, backend="eager")(ids), expected)
        program = torch.export.export(module, (ids,))
        assert_close("exported", program.module()(ids), expected)
    nodes = {str(node.target) for node in program.graph.nodes}
    scan = "selective_scan" if family in ("mamba", "zamba") else "ssd_scan"
    assert {f"vlmamba.{scan}.default", "vlmamba.causal_conv1d.default"} <= nodes


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mamba", {"use_bias": True}),
        ("mamba", {"hidden_act": "gelu"}),
        ("mamba", {"conv_kernel": 2}),
        ("mamba2", {"time_step_limit": (0.05, 0.5)}),
        ("mamba2", {"use_bias": True, "n_groups": 1}),
        ("falcon_h1", {"mamba_rms_norm": False}),
        ("falcon_h1", {"mamba_norm_before_gate": True}),
        ("zamba2", {"time_step_min": 0.3}),
    ],
    ids=str,
)
def test_options_of_the_mixers(family, changes):
    stock = tiny_language_model(family, **changes)
    ours = apply_kernels(copy.deepcopy(stock))
    ids = tokens(2, 11)
    whole, _ = run(ours, ids)
    assert_close("prefill", whole, run(stock, ids)[0])
    # recomputing is the measure here: transformers' steps forget the limits of the time step
    _, states = run(ours, ids[:, :10])
    assert_close("step", run(ours, ids[:, 10:], states, 10)[0], whole[:, 10:])
    left, mask, _ = padded("left")
    options = {"attention_mask": mask}
    if "position_ids" in inspect.signature(type(ours).forward).parameters:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    logits, states = run(ours, left, **options)
    for row, length in enumerate(LENGTHS):
        assert_close("padded", logits[row, -length:], run(ours, left[row : row + 1, -length:])[0][0])


def test_a_model_without_mamba_layers_is_refused():
    with pytest.raises(ValueError, match="apply_kernels: Linear has no mixer of a supported family"):
        apply_kernels(nn.Linear(2, 2))


def test_only_known_names_are_found():
    from vlmamba.layers import kernels

    assert kernels.BambaMixer is mixer_class("bamba")
    with pytest.raises(AttributeError, match="no attribute 'LlamaMixer'"):
        kernels.LlamaMixer  # noqa: B018


def test_a_mask_changed_in_place_is_read_again():
    model, ids = moved("mamba"), tokens(1, 6)
    mask = torch.ones_like(ids)
    first, _ = run(model, ids, attention_mask=mask)
    mask[0, :2] = 0
    second, _ = run(model, ids, attention_mask=mask)
    assert_close("logits", second[:, 2:], run(model, ids[:, 2:])[0])
    assert not torch.equal(first[:, 2:], second[:, 2:])
    with torch.inference_mode():
        assert_close("inference", model(ids, attention_mask=mask.clone()).logits[:, 2:], second[:, 2:])
