"""What a trained policy makes of rows that it was not trained on: nothing is sampled."""

import numpy as np
import pandas as pd
from torch import Tensor

from robustpo_kit.data import PreferenceSet, preferred_and_least, question, shared
from robustpo_kit.errors import KitError
from robustpo_kit.records import digest


def heldout_outcomes(
    rows: PreferenceSet, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> pd.DataFrame:
    """Outcomes of held-out rows, from what `score` gave before and after training.

    Which response is preferred, `data.preferred_and_least` says.

    implicit_accuracy   share of the others whose gain, log pi(y|x) - log pi_before(y|x), is below
                        that of the preferred one; ties count half
    implicit_margin     gain of the preferred one less the mean of the others, nats
    accuracy_per_token  as implicit_accuracy, of log-probs per token: what SimPO ranks by
    preferred_logp      log-prob per token of the preferred one, nats

    Args:
        rows: N, each of at least two responses.
        before, after: log-probs and lengths [N, K].

    Returns:
        A row a held-out row and outcome: row_id, group, texts (a digest), outcome, value.

    """
    first, lengths = before[0].double().numpy(), before[1].double().numpy()
    last, found = after[0].double().numpy(), []
    for number, row in enumerate(rows):
        count = len(row.responses)
        best, _ = preferred_and_least(row)
        gain = last[number, :count] - first[number, :count]
        per_token = last[number, :count] / lengths[number, :count]
        values = {
            "implicit_accuracy": _share_below(gain, best),
            "implicit_margin": float(gain[best] - np.delete(gain, best).mean()),
            "accuracy_per_token": _share_below(per_token, best),
            "preferred_logp": float(per_token[best]),
        }
        texts = digest([row.prompt, *row.responses], best, length=8)
        place = {"row_id": row.row_id, "group": row.group, "texts": texts}
        found += [place | {"outcome": name, "value": value} for name, value in values.items()]
    return pd.DataFrame(found)


def _share_below(values: np.ndarray, best: int) -> float:
    """Share of the others below the value at `best`; ties count half."""
    return float(((1 + np.sign(values[best] - np.delete(values, best))) / 2).mean())


def check_heldout(rows: PreferenceSet, heldout: PreferenceSet) -> None:
    """Raises KitError naming a held-out row of one response, or whose prompt is trained on."""
    for row in heldout:
        if len(row.responses) < 2:
            raise KitError(f"held-out row {row.row_id}: has one response; at least two are needed")
    refuse_shared_prompts(rows, heldout)


def refuse_shared_prompts(rows: PreferenceSet, heldout: PreferenceSet) -> None:
    """Raises KitError naming a held-out row whose prompt, or whose group, is trained on."""
    found = heldout.select(np.flatnonzero(shared(heldout, rows)))
    if not len(found):
        return
    first, what = found[0], "prompt"
    if question(first.prompt) not in {question(row.prompt) for row in rows}:
        what = f"group '{first.group:.60}'"
    raise KitError(
        f"held-out row {first.row_id} ({len(found)} of {len(heldout)}): its {what} is among the "
        "training rows; take others"
    )
