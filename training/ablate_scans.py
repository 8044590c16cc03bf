# SPDX-License-Identifier: Apache-2.0
"""Does the order matter in which an encoder reads an image? One budget, one table over scan orders.

    python -m training.ablate_scans --recipe training/recipes/scan_ablation.yaml

The recipe is one of `training.train_classifier` whose `scans` names the rows of the table: each a scan or a list of
scans. Every row is trained with every one of `seeds` and differs from the others in the order alone: with `num_paths`
each reads exactly so many orders, so that all have the same parameters. Fixed random permutations, `random_order_0`
to `random_order_3`, are the control. Run it again and it resumes; rows that are done are kept.
"""

import copy
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from training import common
from training.data.labelled_images import RecipeError
from training.train_classifier import train
from vlmamba.scans import Scan, get_scan, list_scans, register_scan


def _register_once(scan: Scan) -> str:
    if scan.name not in list_scans():
        register_scan(scan)
    return scan.name


def random_order(seed: int) -> Scan:
    """A permutation of the positions that is fixed for a grid: an order without any geometry."""
    return Scan(
        f"random_order_{seed}",
        1,
        "a fixed random permutation",
        lambda height, width: np.random.default_rng((seed, height, width)).permutation(height * width)[None],
    )


def exactly(scan: Scan, num_paths: int) -> Scan:
    """A scan of `num_paths` orders: those of `scan`, then these read backwards, and so on until there are enough."""

    def build(height: int, width: int) -> np.ndarray:
        orders = scan.paths(height, width).numpy()
        both = np.concatenate([orders, orders[:, ::-1]])
        return both[np.arange(num_paths) % len(both)].astype(np.int64)

    name = f"{scan.name.replace('+', '_and_').replace('[', '_').replace(']', '')}_of_{num_paths}"
    return Scan(name, num_paths, f"{num_paths} orders of: {scan.description}", build)


def scan_names(recipe: dict[str, Any]) -> dict[str, str]:
    """Row of the table -> the name under which its scan is registered.

    Raises:
        RecipeError: no rows, an unknown scan, or one that is not for grids.
    """
    if not recipe.get("scans"):
        raise RecipeError("scans: no rows, expected `row: scan` or `row: [scan, scan]`")
    for seed in range(4):
        _register_once(random_order(seed))
    found = {}
    for row, names in recipe["scans"].items():
        try:
            scan = get_scan(names if isinstance(names, str) else list(names))
        except ValueError as error:
            raise RecipeError(f"scans.{row}: {error}") from error
        if scan.kind != "grid":
            raise RecipeError(f"scans.{row}: {scan.name} is for {scan.kind!r}, expected orders of a grid")
        found[row] = _register_once(exactly(scan, recipe.get("num_paths") or scan.num_paths))
    return found


def run_row(recipe: dict[str, Any], row: str, scan: str, seed: int) -> dict[str, Any]:
    """The result of one row and seed: the one on disk, or trained now.

    Raises:
        RecipeError: what is on disk was trained by another recipe.
    """
    folder = Path(recipe["output_dir"]) / "rows" / f"{row}-seed{seed}"
    own = copy.deepcopy({key: recipe[key] for key in ("model", "data", "augmentation", "training") if key in recipe})
    own["output_dir"] = own["training"]["output_dir"] = str(folder)
    own["training"] |= {"seed": seed, "data_seed": seed}
    own["model"]["scan"] = scan
    kept = folder / "recipe.yaml"
    if kept.is_file() and yaml.safe_load(kept.read_text()) != own:
        raise RecipeError(f"output_dir: {folder} was trained by another recipe; remove it or name another output_dir")
    if (folder / "result.json").is_file():
        return json.loads((folder / "result.json").read_text())
    return train(own)


def summary(results: dict[str, dict[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each order: means over the seeds, and their standard deviation where there are several."""
    rows = []
    for row, by_seed in results.items():
        each = list(by_seed.values())
        made = {"scan": row, "orders": get_scan(each[0]["model"]["scan"]).num_paths, "seeds": list(by_seed)}
        made |= {key: each[0][key] for key in ("parameters", "images_seen")}
        for split, first in each[0]["accuracy"].items():
            top1 = [one["accuracy"][split]["top1"] for one in each]
            made[split] = {"top1": statistics.mean(top1), "each": top1, "images": first["images"]}
            made[split]["top5"] = statistics.mean(one["accuracy"][split]["top5"] for one in each)
            if len(top1) > 1:
                made[split]["deviation"] = statistics.stdev(top1)
        made |= {key: round(statistics.mean(one[key] for one in each), 1) for key in ("seconds", "cpu_seconds")}
        rows.append(made)
    return sorted(rows, key=lambda one: -one["validation"]["top1"])


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, best validation first; ± is the standard deviation over the seeds, where there are several."""
    splits = [key for key, value in rows[0].items() if isinstance(value, dict)]
    heads = ["scan", "orders", "parameters", *(f"{split} top-1" for split in splits), "CPU seconds", "seeds"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = [row["scan"], row["orders"], f"{row['parameters']:,}", *(_cell(row[split]) for split in splits)]
        lines.append("| " + " | ".join(map(str, [*cells, f"{row['cpu_seconds']:.0f}", len(row["seeds"])])) + " |")
    return "\n".join(lines) + "\n"


def _cell(split: dict[str, Any]) -> str:
    spread = f" ± {100 * split['deviation']:.1f}" if "deviation" in split else ""
    return f"{100 * split['top1']:.1f}{spread} %"


def ablate(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Train what is missing, seed after seed; table.json and table.md grow with every row that is done."""
    scans, out = scan_names(recipe), Path(recipe["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in recipe.get("seeds", [0]):
        for row, scan in scans.items():
            results.setdefault(row, {})[seed] = run_row(recipe, row, scan, seed)
            rows = summary(results)
            (out / "table.json").write_text(json.dumps({"recipe": recipe, "rows": rows}, indent=2) + "\n")
            (out / "table.md").write_text(markdown(rows))
    return rows


def main() -> None:
    recipe = common.parse_recipe(__doc__, "training/recipes/scan_ablation.yaml")
    common.one_line_errors(lambda: print(markdown(ablate(recipe))), RecipeError)


if __name__ == "__main__":
    main()
