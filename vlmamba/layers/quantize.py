# SPDX-License-Identifier: Apache-2.0
"""The linear layers of a language model's mixers and its head in 8 bits."""

from torch import nn

from vlmamba.layers.kernels import apply_kernels
from vlmamba.layers.linear import Int8Linear, linear_layers, output_head


def quantize(model: nn.Module) -> nn.Module:
    """Give the linear layers of every Mamba mixer and the output head int8 weights, in place.

    Each weight is off by at most 1/254 of the largest of its 64 neighbours. Embeddings, norms, convolutions and states
    stay as they are; a head that was tied to the embeddings gets int8 weights of its own. LoRA can sit on top, also if
    it is there before. To load what was saved, quantize a model of the same config, then `load_state_dict`.

    Args:
        model: as `vlmamba.apply_kernels` takes it, which is called first.

    Returns:
        The same model.

    Raises:
        ValueError: there is no Mamba mixer in the model, or a weight is not finite.

    Example:
        >>> model = vlmamba.quantize(MambaForCausalLM.from_pretrained(folder))
        >>> safetensors.torch.save_file(model.state_dict(), "int8.safetensors")
    """
    apply_kernels(model)
    for parent, name, module in list(linear_layers(model)):
        setattr(parent, name, Int8Linear.of(module))
    _untie(model)
    return model


def _untie(model: nn.Module) -> None:
    """An int8 head shares no memory with the embeddings: neither tying nor saving may take it for them."""
    for module in model.modules():
        head = output_head(module)
        if type(head) is not Int8Linear:
            continue
        tied = getattr(module, "all_tied_weights_keys", {})
        names = [f"{name}.weight" for name, other in module.named_modules() if other is head]
        module.all_tied_weights_keys = {name: source for name, source in tied.items() if name not in names}
        for config in {id(c): c for c in (module.config, module.config.get_text_config())}.values():
            config.tie_word_embeddings = False
