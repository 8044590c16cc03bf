# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels cost on a GPU, read from their machine code; no GPU is needed.

Made by `python -m benchmarks triton`. The kernels are compiled as the ops launch them for the calls below. Registers,
and bytes of shared memory, are those of a thread and of a program; a program is one warp, but in kernels without loops
over steps. Instructions are those that a thread issues for one channel and one step: the loops over steps, counted in
the disassembly (SASS) and divided by the elements of one pass through them, plus all that is around these loops once
every 64 steps (most of it runs once a program). How many elements a pass has follows from its exponentials, whose
number an element is known. Counts are not times: how well a GPU hides latency is not in them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.gpu_code import TARGETS, Code, Launch, Loop, launches_of

OUTPUT = Path(__file__).parents[1] / "docs" / "triton_resources.md"
HALF, SINGLE = torch.bfloat16, torch.float32


@dataclass
class Job:
    """A call of the selective scan; `gated` as in language models, where directions are one."""

    batch: int
    directions: int
    length: int
    channels: int
    states: int
    gated: bool

    def operands(self, dtype: torch.dtype) -> tuple:
        """Of `forward` up to `merge`, without memory; paths visit every row once, in another order."""
        rows = (self.batch, self.directions, self.length)
        shared = (self.batch, 1, self.length, self.channels)
        vector = _empty(self.directions, self.channels)
        x, dt = _empty(*shared, dtype=dtype), _empty(*rows, self.channels, dtype=dtype)
        B, C = (_empty(*rows, self.states, dtype=dtype) for _ in range(2))
        A = _empty(self.directions, self.channels, self.states)
        z = _empty(*shared, dtype=dtype) if self.gated else None
        paths = None
        if self.directions > 1:
            paths = torch.arange(self.length, dtype=torch.int32).flip(0).repeat(self.directions, 1)
        return x, dt, A, B, C, vector, z, vector, paths, None, None, True, True

    def forward(self, dtype: torch.dtype, keep: bool = False) -> list[Launch]:
        from vlmamba.ops.selective_scan import triton

        return launches_of(triton.forward, *self.operands(dtype), keep)

    def backward(self, dtype: torch.dtype) -> list[Launch]:
        from vlmamba.ops.selective_scan import triton

        *operands, state, softplus, merge = self.operands(dtype)
        out = _empty(self.batch, 1, self.length, self.channels, dtype=dtype)
        states = _empty(self.batch, self.directions, -(-self.length // 64), self.states, self.channels)
        y = _empty(*out.shape) if self.gated else None
        return launches_of(triton.backward, out, None, *operands, y, states, softplus, merge)


def _empty(*shape: int, dtype: torch.dtype = SINGLE) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


MAMBA_LM = Job(1, 1, 2048, 1536, 16, gated=True)
VIM = Job(64, 2, 200, 768, 16, gated=True)
MAMBA_VISION = Job(64, 1, 196, 768, 16, gated=True)
VMAMBA = Job(64, 4, 3136, 192, 1, gated=False)


def convolution(dtype: torch.dtype) -> list[Launch]:
    from vlmamba.ops.causal_conv1d import triton

    x, weight, bias = _empty(1, 1, 2048, 1536, dtype=dtype), _empty(1, 1536, 4), _empty(1, 1536)
    launches = launches_of(triton.forward, x, weight, bias, None, None, None, True)
    launches += launches_of(triton.backward, x, None, x, weight, bias, None, None, None, True)
    return launches + launches_of(triton.update, _empty(1, 1536), _empty(1, 1536, 3), weight[0], bias[0], True)


def state_update(dtype: torch.dtype) -> list[Launch]:
    from vlmamba.ops.selective_state_update.triton import selective_state_update_triton as step

    vector, row, states = _empty(1536), _empty(1, 1536, dtype=dtype), _empty(1, 16, dtype=dtype)
    A = _empty(1536, 16)
    return launches_of(step, A[None], row, row, A, states, states, vector, row, vector, True)


def mamba2(backward: bool, dtype: torch.dtype) -> list[Launch]:
    """Mamba-2 of 130 million parameters: 24 heads of 64 numbers, 128 states."""
    from vlmamba.ops.ssd import triton

    rows, head = (1, 2048, 24), _empty(24)
    x, dt, B = _empty(*rows, 64, dtype=dtype), _empty(*rows, dtype=dtype), _empty(1, 2048, 1, 128, dtype=dtype)
    operands = (x, dt, head, B, B, _empty(24, 64), x, head, None)
    options = (64, True, 0.0, float("inf"))
    if backward:
        return launches_of(triton.backward, x, None, *operands, _empty(*x.shape), _empty(1, 32, 24, 64, 128), *options)
    return launches_of(triton.forward, *operands, None, *options, False)


# name of a call -> its launches
LAUNCHES: dict[str, Callable[[torch.dtype], list[Launch]]] = {
    "N=16 and gate, forward": MAMBA_VISION.forward,
    "N=16 and gate, long, forward": MAMBA_LM.forward,
    "N=16, two directions and gate, backward": VIM.backward,
    "N=16 and gate, long, backward": MAMBA_LM.backward,
    "N=1, four directions, forward": VMAMBA.forward,
    "N=1, four directions, backward": VMAMBA.backward,
    "convolution, 4 taps": convolution,
    "one step, N=16": state_update,
    "Mamba-2, P=64, N=128, forward": partial(mamba2, False),
    "Mamba-2, P=64, N=128, backward": partial(mamba2, True),
}


def step_loops(code: Code) -> list[tuple[Loop, float]]:
    """The loops over steps and how many elements a thread does in one pass; nothing for other kernels."""
    name, constants = code.launch.kernel.fn.__name__, code.launch.constants
    loops = sorted(code.innermost(), key=lambda loop: code.count("MUFU.EX2", within=loop), reverse=True)
    size = constants.get("BN", 0)
    if name == "scan_fwd_kernel":
        exponentials = [size + 1 + constants["HAS_Z"]]  # decays, softplus, gate
    elif name == "scan_local_kernel":
        exponentials = [size + 1]
    elif name == "scan_bwd_kernel":
        exponentials = [size + 2, size]  # forward once more: softplus and its slope; back
        loops[:2] = sorted(loops[:2], key=lambda loop: loop.start)
    else:
        return []
    return [
        (loop, code.count("MUFU.EX2", within=loop) / number) for loop, number in zip(loops, exponentials, strict=False)
    ]


def per_element(code: Code, *prefixes: str) -> float | None:
    """Instructions of a thread for one element, of these kinds or of all."""
    loops = step_loops(code)
    if not code.nvidia or not loops:
        return None
    # of loops that run a rest of steps no part is needed
    around = code.count(*prefixes) - sum(code.count(*prefixes, within=loop) for loop in code.innermost())
    channels = code.launch.constants["BD"] / 32
    return sum(code.count(*prefixes, within=loop) / elements for loop, elements in loops) + around / 64 / channels


COLUMNS = (
    "kernel",
    "dtype",
    "target",
    "registers",
    "spills",
    "shared",
    "instructions",
    "exp, rcp",
    "shuffles",
    "atomics",
)


def row(code: Code) -> list[str]:
    counts = [per_element(code, *kinds) for kinds in ((), ("MUFU",), ("SHFL",))]
    numbers = [*code.resources.values(), *("-" if v is None else f"{v:.0f}" for v in counts), code.atomics]
    dtype = "bf16" if any(v.dtype == HALF for v in code.launch.arguments if isinstance(v, torch.Tensor)) else "fp32"
    return [code.launch.kernel.fn.__name__, dtype, code.target, *map(str, numbers)]


def tables(targets: tuple[str, ...] = tuple(TARGETS)) -> dict[str, list[list[str]]]:
    """Rows by call; kernels that both dtypes launch in the same way stand there once."""
    found = {}
    for call, launches in LAUNCHES.items():
        chosen = [launch for dtype in (SINGLE, HALF) for launch in launches(dtype)]
        rows = [row(launch.compile(target)) for launch in chosen for target in targets]
        found[call] = list({tuple(r): r for r in rows}.values())
    return found


def markdown(found: dict[str, list[list[str]]]) -> str:
    text = [__doc__.split("\n", 1)[1].strip()]
    for call, rows in found.items():
        lines = [COLUMNS, ["---"] * 3 + ["---:"] * (len(COLUMNS) - 3), *rows]
        text += [f"## {call}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(["# Resources of the GPU kernels", *text]) + "\n"


def main() -> None:
    found = tables()
    for call, rows in found.items():
        report.table(call, list(COLUMNS), rows, left=3)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(markdown(found))
    report.console.print(f"[dim]{OUTPUT}[/]")


if __name__ == "__main__":
    main()
