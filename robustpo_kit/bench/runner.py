"""The run of a benchmark: the rows, a process for each contender in turn, the results."""

import dataclasses
import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustpo_kit import records
from robustpo_kit.bench.children import child
from robustpo_kit.bench.config import CONTENDERS, PEERS, BenchConfig
from robustpo_kit.bench.models import bench_tokenizer
from robustpo_kit.bench.peers import missing
from robustpo_kit.bench.report import speed_ratios, speed_targets, write_results
from robustpo_kit.data import Preference, PreferenceSet, load
from robustpo_kit.errors import KitError
from robustpo_kit.records import stream


class BenchRows(NamedTuple):
    """The texts that contenders share."""

    pairs: list[Preference]
    lists: list[Preference]  # of four responses
    short: list[Preference]  # pairs with calibration factors
    prompt_tokens: list[int]  # of each pair

    def by_name(self) -> dict[str, list[Preference]]:
        """What contenders read."""
        return {"pairs": self.pairs, "lists": self.lists, "short": self.short}


def run(
    data: str | None = None,
    out: str | None = None,
    *,
    model: str = "smollm2-135m-instruct",
    pairs: int = 8,
    alternations: int = 5,
    dtype: str = "auto",
    seed: int = 0,
    scaling: bool = True,
) -> dict[str, Any]:
    """Run every contender in turn.

    Args:
        data: HH-RLHF dialogues as .jsonl or .jsonl.gz; without it, the kit's how-to pairs.
        out: Folder of bench.json, bench.csv and bench.png; without it, nothing is written.
        model: An asset, a folder, "tiny", or "llama-8b" (random weights, on a GPU).
        pairs: Of an epoch, 4 or more.
        alternations: Turns of every contender, 1 or more.
        dtype: Of the weights; "auto" is bfloat16, and float32 for "tiny".
        seed: Of the choice of rows and of every contender.
        scaling: Whether to time steps by prompt length, K and batch too.

    Returns:
        What bench.json says.

    Raises:
        KitError: Where TRL is missing, or too few pairs fit.
    """
    started = time.time()
    if importlib.util.find_spec("trl") is None:
        raise KitError(
            'TRL is not installed, and it is what the bench compares with: pip install "trl>=1.16"'
        )
    if alternations < 1 or pairs < 4:
        raise KitError(
            f"bench: alternations ({alternations}) should be at least 1 "
            f"and pairs ({pairs}) at least 4"
        )
    if dtype == "auto":
        dtype = "float32" if model == "tiny" else "bfloat16"
    config = BenchConfig(model=model, dtype=dtype, pairs=pairs, seed=seed)
    rows = _rows(data, bench_tokenizer(model), config)
    task = {"config": dataclasses.asdict(config), "alternations": alternations}
    skipped = {name: reason for name in PEERS if (reason := missing(name))}
    names = [*CONTENDERS, *(name for name in PEERS if name not in skipped)]
    epochs = _epochs(task, names, rows, out)
    sizes = _sizes(task, names, rows) if scaling else []
    inside = child(task | {"contender": "inside", "scaling": scaling}, rows.by_name())
    results = {
        **speed_ratios(epochs, inside),
        "targets": speed_targets(),
        **epochs,
        "skipped": skipped,
        "sizes": sizes,
        **inside,
        "clock": "wall" if torch.cuda.is_available() else "CPU time of a process with one thread",
        "data": {
            "source": Path(data).name if data else "how_to",
            "prompt_tokens": {
                "median": statistics.median(rows.prompt_tokens),
                "longest": max(rows.prompt_tokens),
            },
        },
        "alternations": alternations,
        **records.provenance(config, seed, started),
    }
    results["versions"] |= {"trl": importlib.metadata.version("trl")}
    if out is not None:
        write_results(Path(out), results)
    return results


def _epochs(
    task: dict[str, Any], contenders: list[str], rows: BenchRows, out: str | None
) -> dict[str, list[dict[str, Any]]]:
    """What each contender measures in each turn; a bench that is stopped leaves it in `out`."""
    epochs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for turn in range(task["alternations"]):
        names = list(contenders)
        if turn % 2:
            names.reverse()
        for name in names:
            epochs[name].append(child(task | {"contender": name}, rows.by_name()))
            if out is not None:
                records.write_json(Path(out) / "partial.json", epochs)
    return epochs


def _sizes(task: dict[str, Any], contenders: list[str], rows: BenchRows) -> list[dict[str, Any]]:
    """Seconds of every contender by the prompt's length and K, and how many times the engine's."""
    table = []
    for name in contenders:
        table += child(task | {"contender": name, "sizes": True}, rows.by_name())
    own = {
        (row["prompt_tokens"], row["k"]): row["seconds"]
        for row in table
        if row["contender"] == "engine"
    }
    return [row | {"times": row["seconds"] / own[row["prompt_tokens"], row["k"]]} for row in table]


def _rows(source: str | None, tokenizer: Any, config: BenchConfig) -> BenchRows:
    """The same texts for every contender: pairs as long as the file's are, in the seed's order.

    Of the pairs that fit, sorted by their tokens, each is the middle one of an equal share.

    Raises KitError where too few pairs fit.
    """
    fitting = sorted(fitting_pairs(source, tokenizer, config), key=lambda pair: sum(pair.tokens))
    count, wanted = len(fitting), config.pairs
    short = [pair.row for pair in fitting if sum(pair.tokens) < config.max_overhead_length]
    if count < wanted or len(short) < config.batch_size:
        raise KitError(
            f"{source or 'how_to'}: fewer than {wanted} pairs fit {config.max_length} tokens, or "
            f"fewer than {config.batch_size} fit {config.max_overhead_length}"
        )
    middles = [fitting[(2 * place + 1) * count // (2 * wanted)] for place in range(wanted)]
    order = stream(config.seed, "bench rows").permutation(wanted).tolist()
    pairs = [middles[place].row for place in order]
    short = [
        dataclasses.replace(row, h=0.5 + place / 4)
        for place, row in enumerate(short[-config.batch_size :])
    ]
    lists = lists_of_four(pairs)[: config.batch_size // 2]
    return BenchRows(pairs, lists, short, [middles[place].tokens[0] for place in order])


class Sized(NamedTuple):
    """A row, and the tokens of its prompt and of each response."""

    tokens: list[int]
    row: Preference


def fitting_pairs(source: str | None, tokenizer: Any, config: BenchConfig) -> list[Sized]:
    """The pairs of a file, or how-to pairs, as the model sees them, that `config` has room for."""
    pool = load("hh", source) if source else load("how_to")
    pairs = []
    for plain in pool:
        row = _plain(pool, plain, tokenizer)
        tokens = token_counts(row, tokenizer)
        if fits(tokens, config):
            pairs.append(Sized(tokens, row))
    return pairs


def fits(tokens: Sequence[int], config: BenchConfig) -> bool:
    """Whether there is room for a prompt and responses of these tokens, none of which is empty."""
    prompt, *responses = tokens
    longest = max(responses)
    return (
        min(tokens) > 0
        and longest < config.max_length // 2
        and prompt + longest + 1 <= config.max_length
    )


def _plain(pool: PreferenceSet, row: Preference, tokenizer: Any) -> Preference:
    """`row` with its prompt as the model sees it, whose first response is preferred."""
    prompt = row.prompt
    if pool.template.kind == "plain":
        prompt = pool.template.render(row.prompt, tokenizer)
    return Preference(
        row.row_id, row.group, prompt, row.responses, row.sources, (1.0, 0.0), 0, False, 1.0
    )


def token_counts(row: Preference, tokenizer: Any) -> list[int]:
    """Tokens of the prompt and of each response."""
    return [len(ids) for ids in tokenizer([row.prompt, *row.responses])["input_ids"]]


def lists_of_four(pairs: list[Preference]) -> list[Preference]:
    """Rows of four responses: two are the next prompt's."""
    lists = []
    for row, following in zip(pairs, pairs[1:] + pairs[:1], strict=True):
        responses = (*row.responses, *following.responses)
        sources, rewards = ("a", "b", "c", "d"), (3.0, 2.0, 1.0, 0.0)
        lists.append(
            dataclasses.replace(row, responses=responses, sources=sources, rewards=rewards)
        )
    return lists
