"""The papers' data sets from the Hub, a local folder or files of the same format."""

from collections.abc import Callable, Iterator
from pathlib import Path

from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.reading import json_lines
from robustpo_kit.data.tasks import Sieve
from robustpo_kit.data.template import Template
from robustpo_kit.errors import KitError


def load_hh(source: str | Path = "Anthropic/hh-rlhf", *, limit: int | None = None) -> PreferenceSet:
    """HH-RLHF pairs (Bai et al., 2022) from the Hub or a local .jsonl(.gz) with full dialogues chosen, rejected."""
    keep = Sieve(max_words=10_000, max_prompt_words=10_000)
    for number, value in _records(source, "train", limit):
        chosen, rejected = value.get("chosen"), value.get("rejected")
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise KitError(
                f"{source}, row {number}, field chosen/rejected: two dialogues as text are expected"
            )
        cut = chosen.rfind("\n\nAssistant:") + len("\n\nAssistant:")
        if not chosen.startswith("\n\nHuman:") or chosen[:cut] != rejected[:cut]:
            keep.drop("malformed")
            continue
        prompt = chosen[:cut].strip()
        group = prompt.split("\n\nAssistant:")[0]
        # the leading space belongs to the response: prompt + response is then the dialogue to the letter
        keep.add(
            f"hh-{number}",
            group,
            prompt,
            (chosen[cut:].rstrip(), rejected[cut:].rstrip()),
            ("chosen", "rejected"),
        )
    return keep.finish("hh")


def load_tldr(
    source: str | Path = "CarperAI/openai_summarize_comparisons", *, limit: int | None = None
) -> PreferenceSet:
    """TL;DR comparisons (Stiennon et al., 2020): columns prompt, chosen, rejected."""
    return _load_columns(source, "tldr", limit, lambda value: value["prompt"])


def load_ultrafeedback(
    source: str | Path = "HuggingFaceH4/ultrafeedback_binarized", *, limit: int | None = None
) -> PreferenceSet:
    """UltraFeedback Binarized (Cui et al., 2024): `chosen` and `rejected` are message lists, the last the reply."""
    return _load_columns(source, "ultrafeedback", limit, lambda value: value["prompt"])


def _load_columns(
    source: str | Path, task: str, limit: int | None, prompt_of: Callable[[dict], str]
) -> PreferenceSet:
    keep = Sieve(max_words=10_000, max_prompt_words=10_000)
    split = "train_prefs" if task == "ultrafeedback" else "train"
    for number, value in _records(source, split, limit):
        try:
            prompt, pair = (
                prompt_of(value),
                tuple(_last_text(value[field]) for field in ("chosen", "rejected")),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise KitError(
                f"{source}, row {number}, field {error}: missing or of another form"
            ) from None
        keep.add(f"{task}-{number}", prompt, prompt, pair, ("chosen", "rejected"))
    rows = keep.finish(task)
    rows.template = Template("chat") if task == "ultrafeedback" else rows.template
    return rows


def _last_text(value: str | list[dict]) -> str:
    return value if isinstance(value, str) else value[-1]["content"]


def _records(source: str | Path, split: str, limit: int | None) -> Iterator[tuple[int, dict]]:
    """Numbered records of a local JSON lines file, or of a Hub data set (or its local mirror folder)."""
    if Path(source).is_file():
        for number, _, value in json_lines(Path(source)):
            if limit is not None and number > limit:
                return
            yield number, value
        return
    from datasets import load_dataset

    try:
        rows = load_dataset(str(source), split=split)
    except (OSError, ValueError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KitError(
            f"{source}: neither a local file nor to be had from the Hub ({reason})"
        ) from None
    for number, value in enumerate(
        rows if limit is None else rows.select(range(min(limit, len(rows)))), start=1
    ):
        yield number, value
