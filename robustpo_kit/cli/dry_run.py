"""What `robustpo train --dry-run` says: the size of a run, without the Hub and without weights."""

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustpo_kit import data, published, records
from robustpo_kit.cli.asked import Asked
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from robustpo_kit.policies import TokenRow
    from robustpo_kit.training import Estimate, TrainConfig

MEMINFO, CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
CHARACTERS = 4  # of a token, where the tokenizer is not here
GPU_SHARE, CPU_SHARE = 0.4, 0.5  # of the peak, of a product of matrices, that a step reaches
GPU_CONTEXT = 0.7e9  # bytes that CUDA itself takes; about


def dry_run(asked: Asked, read: PreferenceSet | None = None) -> str:
    """The report, some lines of a name and what is known.

    Args:
        asked: the run.
        read: its rows, where they have been read.

    Raises:
        KitError: for a file that cannot be read, a model whose configuration is not on this
            machine, or one whose memory cannot be foretold.
    """
    from robustpo_kit import training

    config, where = model_config(asked.model)
    rows, heldout, tokens_said = token_rows(asked, where, read)
    setting = training.Setting(config, asked.dtype, asked.lora, asked.rank, asked.run)
    estimate = training.Estimate(setting, rows, asked.objective, heldout)
    room, room_said, process = _room()
    lines = [
        ("parameters", f"{estimate.parameters:,}, {estimate.trainable:,} of them trained"),
        ("rows", f"{len(rows):,}; {tokens_said}"),
        ("tokens", f"{estimate.tokens:,} in {estimate.steps:,} steps"),
        ("memory", f"{_gb(estimate.peak + process)} at the peak: {_parts(estimate, process)}"),
        *_times(estimate, process),
        *_fetched(asked, where, estimate),
        ("room", room_said),
        ("fits", _fit(estimate, room - process)),
    ]
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def model_config(model: str) -> tuple["PreTrainedConfig", Path | None]:
    """A model's configuration, and its folder where it is on this machine; nothing is fetched.

    Raises KitError where neither its config.json is here nor the kit knows its shape.
    """
    from transformers import AutoConfig

    from robustpo_kit import assets, policies

    if model == "tiny":
        return policies.unwrap(policies.tiny(policies.byte_tokenizer()).model).config, None
    folder = assets.local(model)
    if folder is not None and (folder / "config.json").exists():
        return AutoConfig.from_pretrained(folder), folder
    if folder is not None and (folder / "policy.json").exists():  # of an adapter, over its base
        return model_config(records.read_json(folder / "policy.json")["source"])
    if folder is not None and (folder / "adapter_config.json").exists():  # of peft, likewise
        named = records.read_json(folder / "adapter_config.json")
        return model_config(str(named["base_model_name_or_path"]))
    if model in published.SHAPES:
        shape = dict(published.SHAPES[model])
        return AutoConfig.for_model(shape.pop("model_type"), **shape), None
    raise KitError(
        f"--model {model}: no config.json of it on this machine, and --dry-run fetches nothing; "
        "give a local folder, an asset that `robustpo doctor --fetch` has fetched, or a preset's "
        "model"
    )


def token_rows(
    asked: Asked, folder: Path | None, read: PreferenceSet | None = None
) -> tuple[Sequence["TokenRow"], Sequence["TokenRow"], str]:
    """Tokens of the rows and of those held out, and in words how they are known.

    Nothing is fetched.
    """
    from robustpo_kit import assets, training

    if asked.data in published.ROWS:
        rows, said = _bound(asked)
        return rows, (), said
    task = data.TASKS.get(asked.data)
    here = Path(asked.data).exists() if task is None else assets.local(task.source) is not None
    if not here:
        raise KitError(f"--data {asked.data}: not on this machine, and --dry-run fetches nothing")
    if read is None:
        trained, heldout = asked.rows()
    else:
        trained, heldout = training.fitting_rows(read, asked.objective), None
    tokenizer = _tokenizer(asked.model, folder)
    said = "tokens counted"
    if tokenizer is None:
        said = f"tokens guessed, {CHARACTERS} characters each: the tokenizer is not on this machine"
    rows = _tokens(asked, trained, tokenizer, mismatched=asked.objective.needs_kl)
    if heldout is None:
        return rows, (), said
    said += f"; {len(heldout):,} more held out"
    return rows, _tokens(asked, heldout, tokenizer, mismatched=False), said


def _tokens(
    asked: Asked,
    rows: PreferenceSet,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    mismatched: bool,
) -> Sequence["TokenRow"]:
    """The rows' tokens; guessed where there is no tokenizer."""
    from robustpo_kit import policies

    run = asked.run
    if tokenizer is None:
        return [_guessed(row, run) for row in rows]
    template = data.template_of(asked.data) or policies.own_template(tokenizer)
    limits: dict[str, Any] = {"max_length": run.max_length, "max_response": run.max_response}
    return policies.tokenize(rows, tokenizer, template, mismatched=mismatched, **limits).rows


def _tokenizer(model: str, folder: Path | None) -> "PreTrainedTokenizerBase | None":
    """The model's tokenizer, where it is on this machine."""
    from transformers import AutoTokenizer

    from robustpo_kit import policies

    if model == "tiny":
        return policies.byte_tokenizer()
    if folder is None:
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return None


def _bound(asked: Asked) -> tuple[Sequence["TokenRow"], str]:
    """Rows of a data set on the Hub: as long as they may be."""
    from robustpo_kit.policies import TokenRow

    count = 2
    if asked.preset is not None:
        count = published.preset(asked.preset).sources
    if asked.objective.responses == "one":
        count = 1
    half = asked.run.max_length // 2
    response = (0,) * (asked.run.max_response or half)
    row = TokenRow("bound", (0,) * (asked.run.max_length - len(response)), (response,) * count, ())
    row = row._replace(skips=(0,) * count)
    return [row] * published.ROWS[asked.data], (
        f"about, by the data set's card, of {count} responses; tokens at most (max_length)"
    )


def _guessed(row: Preference, run: "TrainConfig") -> "TokenRow":
    """A row whose tokens are guessed from its characters."""
    from robustpo_kit.policies import TokenRow

    limit = run.max_response or run.max_length // 2
    sizes = [min(limit, 1 + len(text) // CHARACTERS) for text in row.responses]
    prompt = min(run.max_length - max(sizes), 1 + len(row.prompt) // CHARACTERS)
    responses = tuple((0,) * size for size in sizes)
    return TokenRow(row.row_id, (0,) * prompt, responses, (0,) * len(sizes))


def _room() -> tuple[float, str, float]:
    """Bytes of a device here, in words, and what the process takes of them without a model."""
    import torch

    from robustpo_kit.bench import memory_in_use

    if torch.cuda.is_available():
        room = float(torch.cuda.get_device_properties(0).total_memory)
        return room, f"{_gb(room)} a device: {records.device_name()}", GPU_CONTEXT
    room, device = available_memory(), records.device_name()
    hint = "; under MALLOC_MMAP_THRESHOLD_=131072, or glibc keeps more than is live"
    return room, f"{_gb(room)} free: {device}{hint * _under_glibc()}", float(memory_in_use())


def _under_glibc() -> bool:
    """Whether freed memory may stay with the process: glibc does not return what it merges."""
    return platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ


def available_memory() -> float:
    """Bytes of memory that this machine or container has to give; all where it does not say."""
    if not MEMINFO.exists():
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    lines = MEMINFO.read_text().splitlines()
    free = 1024.0 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    limit = CONTROL_GROUP / "memory.max"  # of a container; "max" where there is none
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, float(most) - float((CONTROL_GROUP / "memory.current").read_text()))
    return free


def _parts(estimate: "Estimate", process: float) -> str:
    parts = {**estimate.memory, "process": process}
    return ", ".join(f"{name} {_gb(size)}" for name, size in parts.items())


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _times(estimate: "Estimate", process: float) -> list[tuple[str, str]]:
    """What the run takes, by what for; and in bfloat16, where that is quicker here."""
    rate, said = _rate(estimate.setting.kind)
    seconds = _seconds(estimate, rate)
    parts = ", ".join(f"{name} {_lasting(time)}" for name, time in seconds.items())
    total = sum(seconds.values())
    lines = [
        ("time", f"{_lasting(total)} on one device at {rate / 1e12:.2g} TFLOP/s ({said})"),
        ("", f"of which {parts}"),
    ]
    if estimate.setting.dtype == "float32":
        setting = dataclasses.replace(estimate.setting, dtype="bfloat16")
        short = dataclasses.replace(estimate, setting=setting)
        quick = sum(_seconds(short, _rate(setting.kind)[0]).values())
        if quick < total:
            size = _gb(short.peak + process)
            lines.append(("cheaper", f"--dtype bfloat16: {_lasting(quick)}, {size} at the peak"))
    return lines


def _seconds(estimate: "Estimate", rate: float) -> dict[str, float]:
    """Seconds at a rate of operations a second, by what for."""
    from robustpo_kit import bench

    seconds = {}
    for name, (passes, rows) in estimate.passes.items():
        forward = bench.step_flops(estimate.policy, rows) / 2  # and as much for the backward
        seconds[name] = passes * forward / rate
    return seconds


def _lasting(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:.1f} minutes"


def _rate(kind: Any) -> tuple[float, str]:
    """Operations a second that a run reaches, about, and how that is known."""
    import torch

    from robustpo_kit.bench import PEAK_FLOPS

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        peak = next((rate for card, rate in PEAK_FLOPS.items() if card in name), None)
        if peak is not None:
            return (
                GPU_SHARE * peak,
                f"stated: {GPU_SHARE:.0%} of the data sheet's {peak / 1e12:.0f}",
            )
    said = f"measured now, under the present load: {CPU_SHARE:.0%} of a product of matrices here"
    return CPU_SHARE * _measured_rate(kind), said


def _measured_rate(kind: Any, size: int = 512, times: int = 30) -> float:
    """Operations a second of the product of two matrices, the best of many.

    Products are short, so that some of them are not interrupted by what else runs.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.randn(size, size, device=device).to(kind)
    taken = []
    for _ in range(times):
        before = time.perf_counter()
        (left @ left).sum().item()
        taken.append(time.perf_counter() - before)
    return 2 * size**3 / min(taken)


def missing_data(asked: Asked) -> str:
    """What a preset takes and its task has not, and how to make it; empty where it has all."""
    needs_h = asked.objective.needs_h
    if not asked.preset or asked.data not in data.TASKS:
        return ""
    if not (asked.objective.needs_rewards or needs_h):
        return ""
    return (
        f"not on the Hub: responses with rewards{' and h' * needs_h} (DoRA App. C.1, C.2), which "
        f"`{asked.data}` lacks; make replies by `robustpo synthesise --task {asked.data}`, score "
        "them, and give --data FILE"
    )


def _fetched(asked: Asked, folder: Path | None, estimate: "Estimate") -> list[tuple[str, str]]:
    """What a run would fetch, or that it is here."""
    lines = []
    if folder is not None:
        lines.append(("model", f"{asked.model}: here, {folder}"))
    elif asked.model != "tiny":
        size = 2 * (estimate.parameters - estimate.trainable * (asked.lora != "none"))
        lines.append(("model", f"{asked.model}: from the Hub, about {_gb(size)} in 16 bits"))
    if missing := missing_data(asked):
        lines.append(("data", missing))
    elif asked.data in published.ROWS:
        lines.append(("data", f"{data.TASKS[asked.data].source}: from the Hub, size unknown"))
    else:
        lines.append(("data", f"{asked.data}: here"))
    return lines


def _fit(estimate: "Estimate", room: float) -> str:
    """Whether the setting fits, and else the nearest one that does."""
    from robustpo_kit import training

    if estimate.peak <= room:
        return "yes"
    found = training.nearest_fit(estimate, room)
    words = "no, nor would LoRA in bfloat16 with prompts one by one and gradient_checkpointing"
    if found is not None:
        changes, smaller = found
        words = f"no; the nearest that fits ({_gb(smaller.peak)}): {', '.join(changes)}"
    devices = training.devices_needed(estimate, room)
    if devices is not None:
        words += (
            f"; or as asked, with micro_batch_size=1 and gradient_checkpointing=true, under FSDP2 "
            f"on {devices} such devices"
        )
    return words
