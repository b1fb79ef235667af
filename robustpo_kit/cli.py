"""The command `robustpo`: a thin door to the package; what fails for the user's reasons is one line and exit code 2."""

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from robustpo_kit import __version__, paths, records
from robustpo_kit.records import KitError

DISK_GB = 3.0  # models, their float32 copies and the checkpoints of a series under profile cpu


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. ROBUSTPO_DEBUG=1 shows the whole traceback of an error."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except (KitError, ValueError) as error:
        if os.environ.get("ROBUSTPO_DEBUG"):
            raise
        print(f"robustpo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robustpo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `robustpo ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """argparse prints the usage before an error; one line is easier to read in a log."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"robustpo: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="robustpo", description="Robust preference optimization of language models.")
    parser.add_argument("--version", action="version", version=f"robustpo-kit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    for add in (
        _add_series,
        _add_doctor,
        _add_notebooks,
        _add_synthesise,
        _add_train,
        _add_score,
        _add_judge,
        _add_bench,
    ):
        add(commands)
    return parser


# ---------------------------------------------------------------- series


def _add_series(commands: Any) -> None:
    p = commands.add_parser("series", help="run the numbered notebooks headless")
    p.add_argument("--profile", default="cpu", help="smoke | cpu | gpu | paper (default: cpu)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", default="", metavar="04,05", help="these notebooks alone; what they need must have run")
    p.add_argument("--resume", action="store_true", help="keep notebooks that are finished and unchanged")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the profile, as JSON")
    p.add_argument(
        "-P", action="append", default=[], metavar="NAME=VALUE", help="a further notebook parameter, as JSON"
    )
    p.add_argument("--time-limit", type=float, default=3600.0, metavar="SECONDS", help="a notebook (default: 3600)")
    slots = p.add_mutually_exclusive_group()
    slots.add_argument("--gpus", default="", metavar="0,1", help="run as many notebooks at once, one a GPU")
    slots.add_argument("--workers", type=int, default=1, metavar="N", help="notebooks at once (default: 1)")
    p.add_argument("--publish", action="store_true", help="run nothing: copy the last run's results to be committed")
    p.set_defaults(run=_series)


def _series(arguments: argparse.Namespace) -> int:
    from robustpo_kit import series

    if arguments.publish:
        print("\n".join(series.publish(arguments.profile)))
        return 0
    if arguments.workers < 1 or arguments.time_limit <= 0:
        raise KitError("--workers and --time-limit should be greater than 0")
    results = series.run(
        series.Plan(
            profile=arguments.profile,
            seed=arguments.seed,
            overrides=_assignments("--set", arguments.set),
            parameters=_assignments("-P", arguments.P),
            only=_numbers(arguments.only),
            resume=arguments.resume,
            time_limit=arguments.time_limit,
            slots=tuple(_list(arguments.gpus)) or (None,) * arguments.workers,
        )
    )
    return 0 if all(result.status == "ok" for result in results) else 1


def _add_notebooks(commands: Any) -> None:
    p = commands.add_parser("notebooks", help="execute the text notebooks that changed into notebooks/*.ipynb")
    p.add_argument("--only", default="", metavar="04,05")
    p.add_argument("--all", action="store_true", help="execute unchanged ones too")
    p.set_defaults(run=_notebooks)


def _notebooks(arguments: argparse.Namespace) -> int:
    from robustpo_kit import refresh

    done = refresh.refresh(only=list(_numbers(arguments.only)) or None, everything=arguments.all)
    print(f"{len(done)} executed" if done else "nothing changed")
    return 0


# ---------------------------------------------------------------- doctor


def _add_doctor(commands: Any) -> None:
    p = commands.add_parser("doctor", help="versions, devices, assets, free disk; what is missing and what mends it")
    p.add_argument("--fetch", action="store_true", help="download and convert the assets that are missing")
    p.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from robustpo_kit import assets

    if arguments.fetch:
        assets.fetch()
    versions = records.versions()
    print("versions  " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"device    {records.device_name()}")
    troubles = []
    missing = [name for name in ("torch", "transformers", "peft", "papermill") if not _installed(name)]
    if missing:
        troubles.append(f"{', '.join(missing)} not installed: make env")
    free = shutil.disk_usage(_existing(paths.CACHE)).free / 1e9
    print(f"disk      {free:.0f} GB free for the cache ({paths.CACHE})")
    if free < DISK_GB:
        troubles.append(f"less than {DISK_GB:.0f} GB free: move the cache with ROBUSTPO_CACHE=FOLDER")
    for row in assets.status():
        print(f"asset     {row['asset']:<22} {row['state']:<8} {row['wheel']:<28} {row['detail']}")
        if row["mend"]:
            troubles.append(f"asset {row['asset']} {row['state']} ({row['detail']}): {row['mend']}")
    for trouble in troubles:
        print(f"mend      {trouble}")
    print("all well" if not troubles else f"{len(troubles)} to mend")
    return 1 if troubles else 0


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


# ---------------------------------------------------------------- synthesise


def _add_synthesise(commands: Any) -> None:
    p = commands.add_parser("synthesise", help="sample the synthetic replies of a task into data/synthetic/; resumable")
    p.add_argument(
        "--task", required=True, help="how_to | dialogue | summaries | hh | tldr | ultrafeedback | FILE.jsonl"
    )
    p.add_argument("--model", default="smollm2-135m-instruct", help="asset, Hub id or folder")
    p.add_argument("--dtype", default="bfloat16")
    p.add_argument("--rows", type=int, default=0, metavar="N", help="a seeded choice of N rows (default: all)")
    p.add_argument("--extra", action="store_true", help="the one further reply of contaminated samples (seed + 1)")
    p.add_argument("--max-new-tokens", type=int, default=40)
    p.add_argument("--batch-size", type=int, default=64, help="prompts a batch")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=_synthesise)


def _synthesise(arguments: argparse.Namespace) -> int:
    from robustpo_kit import data, mixture, policies
    from robustpo_kit.generation import SamplingConfig

    rows = data.load(arguments.task)
    if arguments.rows:
        rows = rows.split({"rows": arguments.rows}, arguments.seed)["rows"][: arguments.rows]
    rows = rows.select(
        sorted(range(len(rows)), key=lambda i: len(rows[i].prompt)) if arguments.rows else range(len(rows))
    )
    policy = policies.load(arguments.model, template=rows.template, dtype=arguments.dtype)
    samples = 1 if arguments.extra else 2
    config = SamplingConfig(max_new_tokens=arguments.max_new_tokens, batch_size=arguments.batch_size, samples=samples)
    out = mixture.store_path(f"{rows.name}_extra" if arguments.extra else rows.name)
    seed = arguments.seed + 1 if arguments.extra else arguments.seed
    about = {"model": arguments.model, "dtype": arguments.dtype}
    mixture.synthesise(rows, policy.model, policy.tokenizer, config, out, seed=seed, about=about)
    print(f"{len(rows)} rows, {samples * len(rows)} replies -> {paths.show(out)}")
    return 0


# ---------------------------------------------------------------- train, score, judge


def _add_train(commands: Any) -> None:
    p = commands.add_parser("train", help="train a policy on a preference file; also under `accelerate launch -m`")
    p.add_argument("--config", metavar="FILE.json", help="any of these settings by name; flags win over it")
    p.add_argument("--data", metavar="FILE.jsonl", help="preferences: prompt and responses, or chosen and rejected")
    p.add_argument("--objective", metavar="SPEC", help='e.g. "dpo(beta=0.1)" or "dora(dpo_pl, beta=0.1, lam=1.0)"')
    p.add_argument("--model", help="asset, Hub id, local folder, or tiny")
    p.add_argument("--out", metavar="DIR", help="where the policy and record.json go")
    p.add_argument("--seed", type=int)
    p.add_argument("--dtype", help="float32 | bfloat16")
    p.add_argument("--lora", help="attention | all-linear | none")
    p.add_argument("--rank", type=int, help="of the LoRA adapter")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of TrainConfig, as JSON")
    p.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from robustpo_kit import objectives, policies, training
    from robustpo_kit.data import PreferenceSet

    given = _train_settings(arguments, {field.name for field in dataclasses.fields(training.TrainConfig)})
    out = _free_folder(Path(given.pop("out")))
    model, dtype = given.pop("model"), given.pop("dtype", "float32")
    lora, rank = given.pop("lora", "attention"), given.pop("rank", 16)
    rows, objective = PreferenceSet.from_jsonl(given.pop("data")), objectives.build(given.pop("objective"))
    try:
        config = training.TrainConfig(**given)
    except TypeError as error:
        raise KitError(f"train: {error}") from None
    policy = policies.load(model, dtype=dtype)
    if lora != "none" and not policy.has_adapter:
        policy.add_lora(lora, rank, seed=config.seed)
    record = training.train(policy, rows, objective, config)
    policy.save(out)
    if int(os.environ.get("RANK", "0")) == 0:
        record.to_json(out / "record.json")
        print(training.run_card(record))
        print(f"policy     {paths.show(out)}")
    training.end_ranks()
    return 0


def _train_settings(arguments: argparse.Namespace, fields: set[str]) -> dict[str, Any]:
    """Settings from the config file, then --set, then flags; raises KitError for one that is unknown or missing."""
    flags = ("data", "objective", "model", "out", "seed", "dtype", "lora", "rank")
    given = records.read_json(Path(arguments.config)) if arguments.config else {}
    if not isinstance(given, dict):
        raise KitError(f"{arguments.config}: expected one JSON object")
    given |= _assignments("--set", arguments.set)
    given |= {name: getattr(arguments, name) for name in flags if getattr(arguments, name) is not None}
    for name in given:
        if name not in fields | set(flags):
            raise KitError(f"train: setting '{name}' is unknown; choose among {', '.join(sorted(fields | set(flags)))}")
    for name in ("data", "objective", "model", "out"):
        if name not in given:
            raise KitError(f"train: --{name} is missing")
    return given


def _free_folder(out: Path) -> Path:
    """`out`, unless it holds something that is not a policy: saving a policy replaces the folder."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "policy.json").exists())):
        raise KitError(f"--out {paths.show(out)}: exists and is not a policy of this kit; name another folder")
    return out


def _add_score(commands: Any) -> None:
    p = commands.add_parser("score", help="score every response of a preference file: one JSON line a row")
    p.add_argument("--data", required=True, metavar="FILE.jsonl")
    p.add_argument("--model", help="adds logps (nats, summed) and lengths: asset, Hub id, folder, policy, or tiny")
    p.add_argument("--classifier", metavar="DIR", help="adds c, the probability of the target source")
    p.add_argument("--reward", metavar="DIR", help="adds rewards, in Bradley-Terry units")
    p.add_argument("--dtype", default="float32", help="of the model")
    p.add_argument("--out", metavar="FILE.jsonl", help="default: standard output")
    p.set_defaults(run=_score)


def _score(arguments: argparse.Namespace) -> int:
    from robustpo_kit.data import PreferenceSet

    if not (arguments.model or arguments.classifier or arguments.reward):
        raise KitError("score: name at least one of --model, --classifier, --reward")
    rows = PreferenceSet.from_jsonl(arguments.data)
    columns: dict[str, list[list[float]]] = {}
    if arguments.model:
        from robustpo_kit import policies, training

        logps, lengths = training.score(policies.load(arguments.model, dtype=arguments.dtype), rows)
        columns |= {"logps": logps.tolist(), "lengths": lengths.tolist()}
    if arguments.classifier:
        from robustpo_kit.calibration import SourceClassifier

        columns["c"] = SourceClassifier.load(arguments.classifier).score_set(rows).tolist()
    if arguments.reward:
        from robustpo_kit.rewards import RewardModel

        columns["rewards"] = RewardModel.load(arguments.reward).score_set(rows).tolist()
    lines = []
    for position, row in enumerate(rows):
        count = len(row.responses)  # a model's columns are padded to the longest row
        values = {name: column[position][:count] for name, column in columns.items()}
        lines.append(json.dumps({"row_id": row.row_id} | values, ensure_ascii=False))
    _write_lines(lines, arguments.out)
    return 0


def _add_judge(commands: Any) -> None:
    p = commands.add_parser("judge", help="win, tie and lose of each source's replies against those of one column")
    p.add_argument("--data", required=True, metavar="FILE.jsonl", help="prompt, responses, sources (who wrote each)")
    p.add_argument("--judge", required=True, metavar="DIR", help="a reward model trained on other rows")
    p.add_argument("--against", type=int, default=0, metavar="COLUMN", help="the replies to beat (default: 0)")
    p.add_argument("--tie-band", type=float, default=0.05, help="|preference - 1/2| within it is a tie")
    p.add_argument("--seed", type=int, default=0, help="of the order in which the judge sees two replies")
    p.add_argument("--out", metavar="FILE.csv", help="the table, with its provenance beside it as JSON")
    p.set_defaults(run=_judge)


def _judge(arguments: argparse.Namespace) -> int:
    from robustpo_kit import judging
    from robustpo_kit.data import PreferenceSet
    from robustpo_kit.rewards import RewardModel

    started = time.time()
    rows = PreferenceSet.from_jsonl(arguments.data)
    names = rows[0].sources
    for row in rows:
        if row.sources != names:
            raise KitError(
                f"{arguments.data}, row {row.row_id}: sources {row.sources}, not {names} as in the first row"
            )
    if not 0 <= arguments.against < len(names) or len(set(names)) < len(names):
        raise KitError(f"judge: --against {arguments.against} should name one of the columns of {names}, all different")
    judge = judging.RewardJudge(RewardModel.load(arguments.judge), tie_band=arguments.tie_band)
    replies = {
        name: [row.responses[column] for row in rows]
        for column, name in enumerate(names)
        if column != arguments.against
    }
    verdicts = judging.compare(
        judge,
        [row.prompt for row in rows],
        replies,
        [row.responses[arguments.against] for row in rows],
        seed=arguments.seed,
        prompt_ids=[row.group for row in rows],
    )
    table = judging.win_table(verdicts, seed=arguments.seed)
    print(table[["policy", "prompts", "win", "tie", "lose", "score"]].round(3).to_string(index=False))
    if arguments.out:
        config = {"data": arguments.data, "judge": arguments.judge, "against": names[arguments.against]}
        records.write_table(Path(arguments.out), table, records.provenance(config, arguments.seed, started))
    return 0


def _write_lines(lines: list[str], out: str | None) -> None:
    text = "\n".join(lines) + "\n"
    if out:
        records.write_text(Path(out), text)
        print(f"{len(lines)} rows -> {out}")
    else:
        sys.stdout.write(text)


# ---------------------------------------------------------------- bench


def _add_bench(commands: Any) -> None:
    p = commands.add_parser("bench", help="throughput and memory against TRL on the same work")
    p.add_argument("--data", metavar="FILE", help="HH-RLHF dialogues, .jsonl or .jsonl.gz (default: how-to pairs)")
    p.add_argument("--out", metavar="DIR", help="where bench.json, bench.csv and bench.png go (default: runs/bench)")
    p.add_argument("--model", default="smollm2-135m-instruct", help="an asset, a folder or a Hub id")
    p.add_argument("--dtype", default="auto", help="bfloat16 | float32 (default: bfloat16)")
    p.add_argument("--pairs", type=int, default=8, help="pairs of an epoch (default: 8)")
    p.add_argument("--alternations", type=int, default=5, help="turns of every contender (default: 5)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--gpu-llama", action="store_true", help="an 8B Llama of random weights instead; needs a GPU")
    p.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from robustpo_kit import bench

    out = arguments.out or str(paths.RUNS / "bench")
    found = bench.run(
        arguments.data,
        out,
        model="llama-8b" if arguments.gpu_llama else arguments.model,
        pairs=arguments.pairs,
        alternations=arguments.alternations,
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    print(bench.summary(found))
    print(f"-> {paths.show(Path(out))}")
    return 0


# ---------------------------------------------------------------- reading arguments


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _numbers(text: str) -> tuple[str, ...]:
    """`4,05` or `04_train_dora` as notebook numbers."""
    return tuple(item[:2] if "_" in item else item.zfill(2) for item in _list(text))


def _assignments(flag: str, given: list[str]) -> dict[str, Any]:
    """KEY=VALUE items as a dict; a value that is not JSON is a string."""
    values = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise KitError(f"{flag} {item}: expected KEY=VALUE")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return values
