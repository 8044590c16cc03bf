# SPDX-License-Identifier: Apache-2.0
"""Builds the CPU kernels (`vlmamba/ops/native`). Everything else about the package stands in pyproject.toml.

The library has a plain C interface and is loaded with ctypes, so neither Python nor torch headers are needed.
Without a C++ compiler the installation goes on: the ops then run on PyTorch.
"""

import sys
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "vlmamba/ops/native"
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler has no OpenMP: one thread there


class BuildNative(build_ext):
    """`build_ext` that says in one line when the library cannot be built."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            print(f"vlmamba: CPU kernels not built ({error}); the ops will run on PyTorch", file=sys.stderr)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols  # no PyInit function


setup(
    ext_modules=[
        Extension(
            "vlmamba.ops.native._native",
            sources=sorted(glob(f"{FOLDER}/*.cpp")),
            depends=sorted(glob(f"{FOLDER}/*.h")),
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-Wno-psabi", *OPENMP],
            extra_link_args=OPENMP,
            language="c++",
            optional=True,
        )
    ],
    package_data={"vlmamba.ops.native": ["*.cpp", "*.h"]},
    cmdclass={"build_ext": BuildNative},
)
