# SPDX-License-Identifier: Apache-2.0
"""`vlmamba env`: what runs here, and on what."""

import json
import platform
import sys
from importlib import import_module, metadata, util
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vlmamba.cli.errors import CommandError

if TYPE_CHECKING:
    import torch

PACKAGES = ("vlmamba", "torch", "transformers", "triton")


def env(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show versions, devices, kernel backends and the bundled model."""
    try:
        found = describe()
    except ValueError as error:
        raise CommandError(str(error)) from error
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)


def describe() -> dict:
    """Everything that `vlmamba env --json` prints.

    Raises:
        ValueError: `VLMAMBA_BACKEND` names no backend.
    """
    import torch

    from vlmamba import ops
    from vlmamba.assets import bundled_model
    from vlmamba.ops.backend import requested_backend

    devices = _devices()
    served = {str(device): ops.backend_for(torch.empty(0, device=device)) for device in devices}
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "devices": [{"name": str(device), "description": _description(device)} for device in devices],
        "threads": torch.get_num_threads(),
        "requested_backend": requested_backend(),
        "backends": [_backend(name, served) for name in ops.BACKENDS],
        "bundled_model": {"folder": str(bundled_model()), "present": bundled_model().is_dir()},
    }


def _version(package: str) -> str | None:
    # a build says more of itself than its metadata: 2.15.0+cu132
    if (version := getattr(sys.modules.get(package), "__version__", None)) is not None:
        return version
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list["torch.device"]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [
        "cpu",
        *(f"cuda:{i}" for i in range(count)),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
    return [torch.device(name) for name in names]


def _description(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _backend(name: str, served: dict[str, str]) -> dict:
    """A backend that can be missing has a module `vlmamba.ops.<name>` with `available()` and `reason()`."""
    module = import_module(f"vlmamba.ops.{name}") if util.find_spec(f"vlmamba.ops.{name}") else None
    available = bool(module.available()) if hasattr(module, "available") else True
    reason = module.reason() if hasattr(module, "reason") else None
    devices = [device for device, backend in served.items() if backend == name]
    instructions = module.instruction_set() if available and hasattr(module, "instruction_set") else None
    return {
        "name": name,
        "available": available,
        "in_use": devices,
        "instruction_set": instructions,
        "reason": reason or None,
    }


def _show(found: dict) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, version in found["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_row("platform", found["platform"])
    for device in found["devices"]:
        table.add_row("device", f"{device['name']} ({device['description']})")
    table.add_row("threads", str(found["threads"]))
    for backend in found["backends"]:
        table.add_row("backend", f"{backend['name']}: {_state(backend)}")
    model = found["bundled_model"]
    table.add_row("model", f"{model['folder']} ({'present' if model['present'] else 'missing'})")
    Console(file=sys.stdout, highlight=False, markup=False).print(table)


def _state(backend: dict) -> str:
    state = "available" if backend["available"] else "not available"
    if backend["in_use"]:
        state = f"in use on {', '.join(backend['in_use'])}"
    remark = backend["reason"] or backend["instruction_set"]
    return f"{state} ({remark})" if remark else state
