# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled ahead of time, as the ops launch them: no spills, no atomics, few instructions."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import triton_resources as resources  # noqa: E402
from benchmarks.gpu_code import TARGETS, launches_of  # noqa: E402
from vlmamba.ops.triton import launcher  # noqa: E402

pytestmark = pytest.mark.skipif(launcher.INTERPRETED, reason="kernels made for the interpreter do not compile")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """Compiled kernels are kept nowhere: the compiler runs in every test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def check(code) -> None:
    assert code.resources["spills"] == 0
    assert code.atomics == 0


# the other calls launch the kernels of these, but for paths or spans
CALLS = [
    "N=16 and gate, long, forward",
    "N=16 and gate, long, backward",
    "N=1, four directions, forward",
    "N=1, four directions, backward",
    "convolution, 4 taps",
    "one step, N=16",
    "Mamba-2, P=64, N=128, forward",
    "Mamba-2, P=64, N=128, backward",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("call", CALLS)
def test_no_spills_and_no_atomics(call, target):
    dtype = torch.float32 if target == "sm_80" else torch.bfloat16
    for launch in resources.LAUNCHES[call](dtype):
        check(launch.compile(target))


# instructions a channel and step, in single precision; what they are stands in docs/triton_resources.md, this is more
MOST = {
    "N=16 and gate, forward": 165,
    "N=1, four directions, forward": 60,
    "N=16, two directions and gate, backward": 600,
    "N=1, four directions, backward": 150,
}


@pytest.mark.parametrize("call", MOST)
def test_instructions_on_hopper(call):
    launches = resources.LAUNCHES[call](torch.float32)
    counts = [resources.per_element(launch.compile("sm_90")) for launch in launches]
    assert 0 < sum(count for count in counts if count is not None) <= MOST[call]


@pytest.mark.parametrize("states", [1, 20])
def test_smallest_and_masked_sizes(states):
    """Sizes of 1 are constants to the compiler; channels and states that fill no block are masked."""
    job = resources.Job(1, 1, 1, 1, states, gated=True)
    for launch in [*job.forward(torch.float16), *job.backward(torch.float16)]:
        check(launch.compile("sm_90"))


def test_packed_and_padded_sequences():
    x, dt, A, B, C, D, z, bias, *_ = resources.Job(1, 2, 200, 48, 4, gated=True).operands(torch.float32)
    sequence, last = torch.zeros(1, 200, dtype=torch.int32, device="meta"), torch.empty(1, 2, 48, 4, device="meta")
    padded = torch.full((2, 203), -1, dtype=torch.int32)
    from vlmamba.ops.selective_scan import triton

    for paths, seq_idx in ((None, sequence), (padded, None)):
        shared = (x, dt, A, B, C, D, z, bias, paths, seq_idx)
        forward = launches_of(triton.forward, *shared, last, True, True, True)
        states, y = torch.empty(1, 2, 4, 4, 48, device="meta"), torch.empty(1, 1, 200, 48, device="meta")
        backward = launches_of(triton.backward, x, last, *shared, y, states, True, True)
        for launch in forward + backward:
            check(launch.compile("sm_90"))
