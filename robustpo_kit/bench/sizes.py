"""An epoch of every contender by the length of the prompt and the number of its responses."""

import dataclasses
from typing import Any

from robustpo_kit.bench.config import SIZES_K, SIZES_PROMPT, BenchConfig
from robustpo_kit.bench.epochs import prepare_epoch
from robustpo_kit.bench.meters import clock
from robustpo_kit.bench.models import bench_policy, bench_tokenizer
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.records import stream

WORDS = ("the", "cat", "sat", "on", "my", "mat", "and", "saw", "a", "dog", "far", "from", "home")


def measure_sizes(config: BenchConfig, name: str) -> list[dict[str, Any]]:
    """Seconds of an epoch of one prompt with K responses of 32 tokens, by its length and K.

    The engine takes the K responses as one row, of Plackett-Luce DPO; TRL, which knows pairs, as
    K / 2 pairs of that prompt: every response once, the least that it can do.
    """
    policy = bench_policy(config)
    table: list[dict[str, Any]] = []
    for prompt_tokens in SIZES_PROMPT[policy.device.type]:
        sized = dataclasses.replace(config, max_length=prompt_tokens + 128)
        for k in SIZES_K:
            rows = _random_rows(config, prompt_tokens, k, as_pairs=name != "engine")
            whole = dataclasses.replace(sized, batch_size=len(rows))
            cold = not table or policy.device.type == "cuda"  # a GPU chooses its kernels by size
            for _ in range(1 + cold):
                epoch = prepare_epoch(whole, name, policy, rows)
                before = clock()
                epoch()
                seconds = clock() - before
            entry = {"contender": name, "prompt_tokens": prompt_tokens, "k": k}
            table.append(entry | {"seconds": seconds})
    return table


def _random_rows(
    config: BenchConfig, prompt_tokens: int, k: int, *, as_pairs: bool
) -> PreferenceSet:
    """One prompt and its K responses of random words, in one row or in K / 2 pairs."""
    tokenizer = bench_tokenizer(config.model)
    draws = stream(config.seed, "bench sizes", prompt_tokens, k)

    def text(count: int) -> str:
        ids = tokenizer(" ".join(draws.choice(WORDS, count)), add_special_tokens=False)["input_ids"]
        return tokenizer.decode(ids[:count])

    prompt, responses = text(prompt_tokens), [f" {text(31)}" for _ in range(k)]
    width = 2 if as_pairs else k
    rows = []
    for start in range(0, k, width):
        part = tuple(responses[start : start + width])
        rewards = tuple(float(-place) for place in range(width))
        sources = tuple(map(str, range(width)))
        rows.append(Preference(str(start), str(start), prompt, part, sources, rewards, 0, False))
    return PreferenceSet(rows)
