# SPDX-License-Identifier: Apache-2.0
"""Folders that load with `trust_remote_code=True` where nobody has imported vlmamba: the package must only be there.

What is saved names its classes in `auto_map`, and beside it lies a file through which transformers finds them in the
installed package. transformers' own way, to copy the source files into the folder, cannot hold a package.
"""

import os
from pathlib import Path
from typing import Any

SHIM = "vlmamba_classes"
SHIM_SOURCE = '''\
# SPDX-License-Identifier: Apache-2.0
"""The classes of this folder, for trust_remote_code=True; they are in the package vlmamba, which must be installed."""

import vlmamba


def __getattr__(name):
    return getattr(vlmamba, name)
'''

# config class -> {name of an Auto class: name of the public class that it stands for}
_CLASSES: dict[type, dict[str, str]] = {}


def remember(config: type, auto: type, found: type) -> None:
    """Folders of this config tell the Auto class `auto` to take `found`, a public name of the package."""
    _CLASSES.setdefault(config, {})[auto.__name__] = found.__name__


def _auto_map(names: dict[str, str]) -> dict[str, dict[str, str]]:
    return {"auto_map": {auto: f"{SHIM}.{name}" for auto, name in names.items()}} if names else {}


class PackagedCode:
    """Mixed into everything that transformers would copy source files for."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type | None = None) -> None:
        """Nothing to do, whichever Auto class: the folder's shim leads to the installed package."""


class _WithShim(PackagedCode):
    def to_json_file(self, json_file_path: str | os.PathLike, *args: object, **kwargs: object) -> None:
        """Write the JSON file, and the shim beside it."""
        super().to_json_file(json_file_path, *args, **kwargs)
        Path(json_file_path).with_name(f"{SHIM}.py").write_text(SHIM_SOURCE, encoding="utf-8")


class PackagedConfig(_WithShim):
    """Mixed into a config, first: its folders load with `trust_remote_code=True`."""

    def __post_init__(self, **kwargs: object):
        kwargs.pop("auto_map", None)  # follows from the class; a config inside of another has no folder
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved, with `auto_map`."""
        return super().to_diff_dict() | _auto_map(_CLASSES.get(type(self), {}))


class _PackagedProcessor(_WithShim):
    auto_class: str

    def to_dict(self) -> dict[str, Any]:
        """What is saved, with `auto_map`."""
        ours = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]
        return super().to_dict() | _auto_map({self.auto_class: type(self).__name__} if ours else {})


class PackagedProcessor(_PackagedProcessor):
    """Mixed into a processor, first: its folders load with `trust_remote_code=True`."""

    auto_class = "AutoProcessor"


class PackagedImageProcessor(_PackagedProcessor):
    """Mixed into an image processor, first: its folders load with `trust_remote_code=True`."""

    auto_class = "AutoImageProcessor"
