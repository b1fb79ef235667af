"""What computing a prompt once gives at K = 4, by how much of a row is its prompt."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import pandas as pd

from robustpo_kit import records
from robustpo_kit.bench.children import child
from robustpo_kit.bench.config import BenchConfig
from robustpo_kit.bench.models import bench_tokenizer
from robustpo_kit.bench.runner import Sized, fits, fitting_pairs, lists_of_four, token_counts
from robustpo_kit.errors import KitError

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the prompt's share of a row's tokens
ROWS = 2  # of a step


def run_layouts(
    data: str | None = None,
    out: str | None = None,
    *,
    model: str = "smollm2-135m-instruct",
    alternations: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Time a step of Plackett-Luce DPO over shared and over separate rows, in turn.

    Args:
        data: As of `run`. Each pair gets the two responses of the next one.
        out: Folder of layouts.json and layouts.csv; without it, nothing is written.
        model: An asset, a folder or "tiny".
        alternations: Turns of each layout, 1 or more.
        seed: Of the weights of the adapter.

    Returns:
        What layouts.json says: `table`, a row a quantile and turn: quantile (of the prompt's share
        of a row's tokens, over the rows of the file that fit), prompt_tokens and response_tokens
        (of the step), alternation, shared and separate (seconds), ratio.

    Raises:
        KitError: For arguments that measure nothing, and where too few pairs fit.
    """
    if alternations < 1:
        raise KitError(f"bench: alternations ({alternations}) should be at least 1")
    started = time.time()
    dtype = "float32" if model == "tiny" else "bfloat16"
    config = BenchConfig(model=model, dtype=dtype, seed=seed)
    rows = _by_share_of_prompt(data, config)
    task = {"config": dataclasses.asdict(config), "contender": "layouts"}
    table: list[dict[str, Any]] = []
    for quantile in QUANTILES:
        first = round(quantile * (len(rows) - ROWS))
        chosen = rows[first : first + ROWS]
        lists = {"lists": [sized.row for sized in chosen]}
        seconds = child(task | {"alternations": alternations}, lists)["seconds"]
        key = {
            "quantile": quantile,
            "prompt_tokens": sum(sized.tokens[0] for sized in chosen),
            "response_tokens": sum(sum(sized.tokens[1:]) for sized in chosen),
        }
        for turn in range(alternations):
            times = {layout: values[turn] for layout, values in seconds.items()}
            ratio = times["separate"] / times["shared"]
            table.append(key | {"alternation": turn} | times | {"ratio": ratio})
    results = {"table": table, **records.provenance(config, seed, started)}
    if out is not None:
        records.write_json(Path(out) / "layouts.json", results)
        with records.atomic_write(Path(out) / "layouts.csv") as temporary:
            pd.DataFrame(table).to_csv(temporary, index=False, float_format="%.6g")
    return results


def _by_share_of_prompt(data: str | None, config: BenchConfig) -> list[Sized]:
    """Rows of four responses that fit, those whose prompt has the least share of tokens first."""
    tokenizer = bench_tokenizer(config.model)
    rows = []
    for row in lists_of_four([pair.row for pair in fitting_pairs(data, tokenizer, config)]):
        tokens = token_counts(row, tokenizer)
        if fits(tokens, config):
            rows.append(Sized(tokens, row))
    if len(rows) < ROWS:
        raise KitError(f"{data or 'how_to'}: fewer than {ROWS} rows fit {config.max_length} tokens")
    return sorted(rows, key=lambda sized: sized.tokens[0] / sum(sized.tokens))


def layouts_summary(results: dict[str, Any]) -> str:
    """The ratios in lines a person reads."""
    lines = []
    keys = ["quantile", "prompt_tokens", "response_tokens"]
    for (quantile, prompt, response), part in pd.DataFrame(results["table"]).groupby(keys):
        ratio = part["ratio"]
        name = f"prompts of {prompt} tokens, replies of {response} (quantile {quantile})"
        spread = f"({ratio.min():.2f} to {ratio.max():.2f})"
        lines.append(f"{name:<60} separate / shared {ratio.median():.2f} {spread}")
    return "\n".join(lines)
