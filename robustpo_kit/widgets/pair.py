"""One preference pair from its text to tokens, log-probabilities, loss and weight."""

from typing import Any

import pandas as pd
import torch

from robustpo_kit import objectives, policies, published, robust
from robustpo_kit.data import PreferenceSet
from robustpo_kit.losses import Scores
from robustpo_kit.policies import Policy

REPLIES = ("chosen", "rejected")
SPECS = {  # of the kinds that `pair.js` has
    "dpo": "dpo(beta={beta})",
    "simpo": "simpo(beta={beta}, gamma_beta_ratio={ratio})",
}
SIMPO = published.PRESETS["gamma/llama-3-8b-instruct/simpo"].spec


@torch.no_grad()
def token_table(policy: Policy, reference: Policy, pairs: PreferenceSet) -> pd.DataFrame:
    """The tokens of pairs with their log-probabilities, without the prompts.

    Args:
        policy: whose logps are `logp`.
        reference: whose are `ref_logp`; of the same tokenizer.
        pairs: N rows of two responses, column 0 the chosen one.

    Returns:
        A row a token: pair, reply (chosen | rejected), token, logp, ref_logp (nats).
    """
    rows = policies.tokenize(pairs, policy.tokenizer, policy.template, model=policy.model).rows
    parts = []
    for number, row in enumerate(rows):
        batch = policies.collate([row], layout="separate", pad=policy.tokenizer.pad_token_id)
        table = pd.DataFrame({"pair": number, "column": batch.owner.tolist()})
        table["token"] = [policy.tokenizer.decode([label]) for label in batch.labels.tolist()]
        table["logp"] = policies.scored_tokens(policy.model, batch.to(policy.device)).tolist()
        table["ref_logp"] = policies.scored_tokens(
            reference.model, batch.to(reference.device)
        ).tolist()
        parts.append(table)
    table = pd.concat(parts, ignore_index=True)
    table.insert(1, "reply", table.pop("column").map(dict(enumerate(REPLIES))))
    return table.round(4)


def pair_state(table: pd.DataFrame) -> dict[str, Any]:
    """The state of the part `pair`, of a `token_table`."""
    pairs = []
    for _, tokens in table.groupby("pair"):
        pair = {}
        for reply, part in tokens.groupby("reply"):
            columns = {"tokens": "token", "logps": "logp", "refs": "ref_logp"}
            pair[reply] = {name: part[column].tolist() for name, column in columns.items()}
        pairs.append(pair)
    simpo = objectives.build(SIMPO)
    beta = objectives.build(published.PRESETS["dora/mistral-7b/hh/dpo"].spec).options["beta"]
    own = {"pair": 0, "loss": "dpo", "beta": beta, "lam": robust.DEFAULT_LAM, "read": 1.0}
    return {"pairs": pairs, "ratio": simpo.options["gamma_beta_ratio"], **own}


def losses(state: dict[str, Any]) -> torch.Tensor:
    """The loss of every pair of a state [B], by the package."""
    sums: dict[str, list[list[float]]] = {name: [] for name in ("logps", "refs", "lengths")}
    for pair in state["pairs"]:
        replies = [pair[name] for name in REPLIES]
        sums["lengths"].append([len(reply["tokens"]) for reply in replies])
        for name in ("logps", "refs"):
            sums[name].append([sum(reply[name]) for reply in replies])
    logps, refs = (torch.tensor(sums[name], dtype=torch.float64) for name in ("logps", "refs"))
    scores = Scores(logps, refs, torch.tensor(sums["lengths"]))
    spec = SPECS[state["loss"]].format(beta=state["beta"], ratio=state["ratio"])
    return objectives.build(spec).step_loss(scores).per_sample
