# SPDX-License-Identifier: Apache-2.0
"""What comes out: a table on the screen, a JSON file with every number, a plot beside it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("vlmamba", "torch", "transformers", "mambapy", "timm", "llama-cpp-python", "triton", "numpy")

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=110)


def environment() -> dict[str, Any]:
    """Machine, versions, commit and date: what a number needs to mean anything."""
    from vlmamba import ops

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", "vlmamba", "benchmarks")
        ),
        "machine": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "backends": [name for name in ops.BACKENDS if _serves(name)],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _serves(backend: str) -> bool:
    from vlmamba import ops

    try:
        with ops.use_backend(backend):
            return True
    except ValueError:
        return False


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']} (family {found.get('cpu family')}, model {found.get('model')})"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def save(name: str, folder: Path, content: dict[str, Any]) -> Path:
    """Write `<folder>/<name>.json` and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    note(str(path))
    return path


def plot(path: Path, draw: Callable[[Any], None], width: float = 10, height: float = 5) -> None:
    """Save a figure that `draw(figure)` fills as PNG, if matplotlib is there."""
    if not util.find_spec("matplotlib"):
        note("no plot: matplotlib is not installed")
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure)
    figure.savefig(path, dpi=120)
    note(str(path))


def draw_bars(axes: Any, title: str, groups: list[str], ratios: list[dict[str, dict[str, float]]]) -> None:
    """A bar with its range for each name of each group, on a logarithmic scale."""
    names = sorted({name for group in ratios for name in group})  # the same colours in every panel
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        bars = [(place, group[name]) for place, group in enumerate(ratios) if name in group]
        places = [place + (i - (len(names) - 1) / 2) * width for place, _ in bars]
        low = [bar["median"] - bar["min"] for _, bar in bars]
        high = [bar["max"] - bar["median"] for _, bar in bars]
        heights = [bar["median"] for _, bar in bars]
        drawn = axes.bar(places, heights, 0.95 * width, label=name, yerr=[low, high], capsize=2)
        axes.bar_label(drawn, [f"x{short(height)}" for height in heights], fontsize=6, padding=2)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(yscale="log", title=title, xticks=range(len(groups)), xticklabels=groups)
    if names:
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)


def table(title: str, columns: list[str], rows: list[list[str]], left: int = 1) -> None:
    """Print a table; the first `left` columns hold words, the others numbers."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index < left else "right", no_wrap=index < left)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def note(text: str) -> None:
    """Print a remark as it is, brackets and all."""
    console.print(text, style="dim", markup=False)


def times(value: dict[str, float] | None) -> str:
    """A ratio with its range: `x64 [37..80]`."""
    if value is None:
        return "-"
    return f"x{short(value['median'])} [dim]\\[{short(value['min'])}..{short(value['max'])}][/]"


def short(value: float) -> str:
    """Three figures, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def megabytes(value: int | None) -> str:
    """`648 MB`."""
    return "-" if value is None else f"{value / 1e6:.1f} MB"
