"""A clone of tatsu-lab/alpaca_eval scored again, beside the numbers that its leaderboard prints."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from robustpo_kit import paths
from robustpo_kit.benchmarks.scores import alpacaeval, judgments
from robustpo_kit.errors import KitError
from robustpo_kit.records import progress

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
LEADERBOARD = f"src/alpaca_eval/leaderboards/data_AlpacaEval_2/{ANNOTATOR}_leaderboard.csv"
GAMED = ("tatsu-lab/alpaca_eval", "df_gamed.csv")  # a dataset of the Hub; not in the repository
COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty")
PRINTED = ("win_rate", "length_controlled_winrate")


def read_gamed(path: Path | None = None) -> pd.DataFrame:
    """AlpacaEval's `df_gamed.csv`: from a file, or from the Hub or its cache.

    Raises:
        KitError: where it cannot be had, with the command that fetches it, or lacks a column.
    """
    if path is None:
        path = _fetched()
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise KitError(f"{paths.show(path)}: cannot be read as CSV ({error})") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise KitError(f"{paths.show(path)}, column {missing[0]}: missing; give df_gamed.csv")
    return table


def _fetched() -> Path:
    from huggingface_hub import hf_hub_download

    repository, file = GAMED
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except Exception as error:  # a library of the network: each version raises its own
        raise KitError(
            f"{file}: neither in the Hub's cache nor to be fetched ({type(error).__name__}); where "
            f"there is a network: hf download {repository} {file} --repo-type dataset --local-dir "
            f". ; then give --gamed {file}"
        ) from None


def reproduced(repository: Path, gamed: pd.DataFrame, models: Collection[str] = ()) -> pd.DataFrame:
    """The leaderboard's numbers from the annotations that lie in a clone.

    Args:
        repository: the clone.
        gamed: of `read_gamed`.
        models: to score; all of the leaderboard that have annotations where none is named.

    Returns:
        As `scores.alpacaeval`, a row a model, and for each of PRINTED what the leaderboard prints
        (NAME_printed) and by how much ours is above it (NAME_difference).

    Raises:
        KitError: where the folder is no clone, or has no annotations of a model.
    """
    repository = Path(repository)
    file = repository / LEADERBOARD
    if not file.exists():
        raise KitError(f"--repo {paths.show(repository)}: no {LEADERBOARD} in it; give a clone")
    printed = pd.read_csv(file, index_col=0)
    stored = {name: _annotations(repository, str(name)) for name in models or printed.index}
    lacking = [name for name, path in stored.items() if not path.exists()]
    if lacking and models:
        place = _annotations(Path(), lacking[0])
        raise KitError(f"--models {lacking[0]}: no {place.as_posix()} in the clone")
    found = [name for name in stored if name not in lacking and name in printed.index]
    if not found:
        raise KitError(
            f"--repo {paths.show(repository)}: no annotations of the leaderboard's models"
        )
    tables = []
    for name in progress(found, "models"):
        table = alpacaeval(judgments("alpacaeval", stored[name]), gamed)
        tables.append(table.assign(model=name))
    table = pd.concat(tables, ignore_index=True)
    for column in PRINTED:
        table[f"{column}_printed"] = printed.loc[found, column].to_numpy()
        table[f"{column}_difference"] = table[column] - table[f"{column}_printed"]
    return table


def _annotations(repository: Path, model: str) -> Path:
    return repository / "results" / model / ANNOTATOR / "annotations.json"
