"""The methods that notebooks train, and what is read from them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from robustpo_kit import judging
from robustpo_kit.profiles import Profile
from robustpo_kit.records import RunRecord, read_json


@dataclasses.dataclass(frozen=True)
class Trained:
    """A method after training: its run record and its scored replies."""

    name: str
    record: RunRecord
    replies: pd.DataFrame
    scores: dict[str, np.ndarray] | None = None  # logps, lengths [N, K] of the training responses

    @classmethod
    def read(cls, name: str, folder: Path) -> "Trained":
        """Read what `Lab.trained` kept."""
        replies = pd.DataFrame(read_json(folder / "replies.json"))
        file = folder / "scores.json"
        scores = (
            {key: np.array(value) for key, value in read_json(file).items()}
            if file.exists()
            else None
        )
        return cls(name, RunRecord.from_json(folder / "record.json"), replies, scores)


def all_replies(methods: Sequence[Trained]) -> pd.DataFrame:
    """The replies of several methods as one tidy table with a `policy` column, without the reply text."""
    parts = [
        trained.replies.drop(columns="reply").assign(policy=trained.name) for trained in methods
    ]
    return pd.concat(parts, ignore_index=True)


def reply_quality(methods: Sequence[Trained], *, draws: int, seed: int) -> pd.DataFrame:
    """By method, over its replies: words, reward, confidence and KL to the reference with CIs, distinct-n."""
    means = judging.mean_table(
        all_replies(methods), ["words", "reward", "confidence", "log_ratio"], draws=draws, seed=seed
    )
    texts = judging.text_table(
        {trained.name: list(trained.replies["reply"]) for trained in methods}
    )
    return means.merge(texts[["policy", "distinct_1", "distinct_2", "duplicates"]], on="policy")


LISTWISE = {
    "dpo_pl": "dpo_pl(beta=0.1)",
    "rrhf": "rrhf(alpha=1.0)",
    "lire": "lire(temperature=2.0)",
}  # DoRA Table 8, HH


# The strength gamma0 / tau = 0.4 of the paper's Llama-3 setting (Table 7); DPO takes the same gamma0 and tau.
GAMMA_METHODS = {
    "dpo": "dpo(beta=0.1)",
    "gamma-dpo": "gamma(dpo(beta=0.1), gamma0=4.0, tau=10.0)",
    "simpo": "simpo(beta=10.0, gamma_beta_ratio=0.4)",
    "gamma-simpo": "gamma(simpo(beta=10.0), gamma_beta_ratio=0.4, tau=10.0)",
}


def listwise_spec(name: str, cfg: Profile) -> str:
    """The objective of a method "LOSS AGGREGATOR" at the papers' hyperparameters and the profile's lambda."""
    loss, aggregator = name.split()
    takes_lambda = aggregator in ("dro", "dora")
    return f"{aggregator}({LISTWISE[loss]}" + (f", lam={cfg.lam})" if takes_lambda else ")")


def simpo_gaps(trained: Trained, beta: float = 10.0) -> pd.DataFrame:
    """SimPO's reward gaps beta (a_w - a_l) of the training pairs after training: columns policy, gap."""
    means = trained.scores["logps"] / trained.scores["lengths"]
    return pd.DataFrame({"policy": trained.name, "gap": beta * (means[:, 0] - means[:, 1])})
