# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels ahead of time, as the ops launch them, and reads the machine code. Needs no GPU."""

import contextlib
import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vlmamba.ops.triton import launcher

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32"}
LABEL = re.compile(r"^(\.L_x_\d+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z0-9_.]+)([^;]*);")


@dataclass
class Launch:
    """One start of a kernel: what decides its machine code."""

    kernel: triton.JITFunction
    arguments: tuple
    constants: dict
    num_warps: int

    def source(self) -> ASTSource:
        """Typed and specialised as Triton does at a call: integers 1 and multiples of 16, aligned pointers."""
        names = [p for p in inspect.signature(self.kernel.fn).parameters if p not in self.constants]
        constants, signature, attributes = dict(self.constants), {}, {}
        for name, value in zip(names, self.arguments, strict=True):
            place = (self.kernel.arg_names.index(name),)
            if isinstance(value, torch.Tensor):
                signature[name] = f"*{TYPES[value.dtype]}"
                attributes[place] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif name in (self.kernel.do_not_specialize or ()):
                signature[name] = "i32"
            elif value == 1:
                signature[name], constants[name] = "constexpr", 1
            else:
                signature[name] = "i32" if abs(value) < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[place] = [["tt.divisibility", 16]]
        signature.update(dict.fromkeys(self.constants, "constexpr"))
        signature = {name: signature[name] for name in self.kernel.arg_names}
        return ASTSource(self.kernel, signature, constants, attributes)

    def compile(self, target: str) -> "Code":
        """The kernel for one of TARGETS; inline PTX only where it is understood."""
        if "FAST" in self.constants:
            self.constants["FAST"] = TARGETS[target].backend == "cuda"
        compiled = triton.compile(
            self.source(), target=TARGETS[target], options={"num_warps": self.num_warps, "num_stages": 1}
        )
        return Code(self, target, compiled)


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, the ops' launchers start nothing: every launch is put into the list instead."""
    launches = []

    def record(kernel, programs, *arguments, num_warps, **constants):
        launches.append(Launch(kernel, arguments, constants, num_warps))

    with mock.patch.object(launcher, "launch", record), mock.patch.object(launcher, "INTERPRETED", False):
        yield launches


def launches_of(function: Callable, *arguments) -> list[Launch]:
    """What a function of the ops launches, each kernel with the same machine code once."""
    with recorded() as launches:
        function(*arguments)
    return list({launch.source().hash(): launch for launch in launches}.values())


@dataclass
class Loop:
    """A loop of the machine code: instructions between a label and the branch back to it."""

    start: int
    stop: int

    def holds(self, other: "Loop") -> bool:
        return self is not other and self.start <= other.start and other.stop <= self.stop


@dataclass
class Code:
    """A compiled kernel."""

    launch: Launch
    target: str
    compiled: triton.compiler.CompiledKernel

    @property
    def nvidia(self) -> bool:
        return TARGETS[self.target].backend == "cuda"

    @cached_property
    def text(self) -> str:
        """Disassembly."""
        if not self.nvidia:
            return self.compiled.asm["amdgcn"]
        return _tool("nvdisasm", self.compiled.asm["cubin"], "-c")

    @cached_property
    def resources(self) -> dict[str, int]:
        """Registers of a thread, bytes of shared memory, spilled registers (or bytes of stack)."""
        if self.nvidia:
            usage = _tool("cuobjdump", self.compiled.asm["cubin"], "--dump-resource-usage")
            found = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
            registers, spills = found["REG"], found["STACK"] + found["LOCAL"]
        else:
            found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", self.text))
            registers = int(found["vgpr_count"])
            spills = int(found["vgpr_spill_count"]) + int(found["sgpr_spill_count"])
        return {"registers": registers, "spills": spills, "shared": self.compiled.metadata.shared}

    @cached_property
    def instructions(self) -> list[str]:
        """Operation codes, without those that only fill up the code."""
        return [code for code, _ in self._lines() if code is not None]

    @cached_property
    def loops(self) -> list[Loop]:
        """All loops of NVIDIA code."""
        labels, loops, place = {}, [], 0
        for code, rest in self._lines():
            if code is None:
                labels[rest] = place
                continue
            target = re.search(r"\.L_x_\d+", rest)
            if code.startswith("BRA") and target and target.group() in labels:
                loops.append(Loop(labels[target.group()], place + 1))
            place += 1
        return loops

    def innermost(self) -> list[Loop]:
        return [loop for loop in self.loops if not any(loop.holds(other) for other in self.loops)]

    def count(self, *prefixes: str, within: Loop | None = None) -> int:
        """How many instructions begin with one of the prefixes; all without any."""
        codes = self.instructions[within.start : within.stop] if within else self.instructions
        return sum(code.startswith(prefixes) for code in codes) if prefixes else len(codes)

    @property
    def atomics(self) -> int:
        """Atomic operations on global memory."""
        if self.nvidia:
            return self.count("RED.", "REDG", "ATOMG", "ATOM.")
        return len(re.findall(r"\b(?:global|flat|buffer)_atomic", self.text))

    def _lines(self) -> list[tuple[str | None, str]]:
        lines = []
        for line in self.text.splitlines():
            if label := LABEL.match(line):
                lines.append((None, label.group(1)))
            elif (found := INSTRUCTION.match(line)) and found.group(1) != "NOP":
                lines.append((found.group(1), found.group(2)))
        return lines


def _tool(name: str, cubin: bytes, *options: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout
