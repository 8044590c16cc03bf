# SPDX-License-Identifier: Apache-2.0
"""`apply_kernels`: any loaded transformers model with Mamba layers, moved onto `vlmamba.ops` in place."""

from functools import cache
from importlib import import_module
from types import MethodType

from torch import nn

from vlmamba.layers.linear import use_few_rows
from vlmamba.layers.mamba import HeadedSelectiveMixer, NormedSelectiveMixer, SelectiveMixer
from vlmamba.layers.mamba2 import DualMixer, ScaledDualMixer
from vlmamba.layers.mixer import KernelMixer

# transformers' families: the class of their mixer, and ours that is mixed into it
FAMILIES: dict[str, tuple[str, type[KernelMixer]]] = {
    "mamba": ("MambaMixer", SelectiveMixer),
    "falcon_mamba": ("FalconMambaMixer", NormedSelectiveMixer),
    "jamba": ("JambaMambaMixer", NormedSelectiveMixer),
    "zamba": ("ZambaMambaMixer", HeadedSelectiveMixer),
    "mamba2": ("Mamba2Mixer", DualMixer),
    "bamba": ("BambaMixer", DualMixer),
    "zamba2": ("Zamba2MambaMixer", DualMixer),
    "nemotron_h": ("NemotronHMamba2Mixer", DualMixer),
    "granitemoehybrid": ("GraniteMoeHybridMambaLayer", DualMixer),
    "falcon_h1": ("FalconH1Mixer", ScaledDualMixer),
}


def apply_kernels(model: nn.Module) -> nn.Module:
    """Move a transformers model onto `vlmamba.ops`, in place; parameters, config and cache stay as they are.

    Every projection goes on being called as a module, so that LoRA, quantization and hooks act. Where nobody could
    tell, a token of generation takes the layers of a Mamba-1 model in one native step, and linear layers read their
    weights at the speed of memory (`vlmamba.layers.mamba_step`, `vlmamba.layers.linear`).

    Args:
        model: any module; every Mamba-1 mixer (mamba, falcon_mamba, jamba, zamba) and Mamba-2 mixer (mamba2, bamba,
            zamba2, nemotron_h, granitemoehybrid, falcon_h1) inside it is replaced.

    Returns:
        The same model.

    Raises:
        ValueError: there is no such mixer in the model.

    Example:
        >>> model = vlmamba.apply_kernels(MambaForCausalLM.from_pretrained(folder))
    """
    found = False
    for module in list(model.modules()):
        family = _family(type(module))
        if family is not None:
            module.__class__ = mixer_class(family)
            if "_old_forward" in vars(module):
                # accelerate's hooks call the forward that they found
                module._old_forward = MethodType(type(module).forward, module)
        found = found or isinstance(module, KernelMixer)
        if type(module).__name__ == "MambaModel" and type(module).__module__ == _module("mamba"):
            module.__class__ = stepping_model()
    if not found:
        families = ", ".join(FAMILIES)
        raise ValueError(f"apply_kernels: {type(model).__name__} has no mixer of a supported family ({families})")
    return use_few_rows(model)


def stepping_model() -> type[nn.Module]:
    """The Mamba-1 model whose layers take a generated token in one native step; needs transformers' family."""
    return import_module("vlmamba.layers.stepping").MambaModel


@cache
def mixer_class(family: str) -> type[nn.Module]:
    """The mixer of one of `FAMILIES` on our ops; transformers' module of that family is imported now, not before."""
    name, ours = FAMILIES[family]
    stock = getattr(import_module(_module(family)), name)
    return type(name, (ours, stock), {"__module__": __name__, "__doc__": ours.__doc__})


def _module(family: str) -> str:
    return f"transformers.models.{family}.modeling_{family}"


def _family(kind: type) -> str | None:
    """The family whose stock mixer this class is."""
    for family, (name, _) in FAMILIES.items():
        if kind.__name__ == name and kind.__module__ == _module(family):
            return family
    return None


def __getattr__(name: str) -> type[nn.Module]:
    """The mixers by their class names, for pickle."""
    for family, (kind, _) in FAMILIES.items():
        if kind == name:
            return mixer_class(family)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
