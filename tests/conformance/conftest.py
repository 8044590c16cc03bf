# SPDX-License-Identifier: Apache-2.0
"""Skips of transformers' tests that do not apply, each for a reason that is named."""

import pytest

from tests.conformance.skips import SKIPS

# transformers marks some of its tests
MARKERS = (
    "accelerate_tests",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "is_training_test",
    "slow",
    "torch_compile_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: a mark of transformers' tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "conformance" and (reason := _reason(item)):
            item.add_marker(pytest.mark.skip(reason=reason))


def _reason(item: pytest.Item) -> str | None:
    owners = [kind.__name__ for kind in item.cls.__mro__] if item.cls else []
    for owner in owners:
        if reason := SKIPS.get(owner, {}).get(item.originalname):
            return reason
    return None
