"""Win, tie and lose by policy, as tables of judges that are admitted; intervals over prompts."""

import pandas as pd

from robustpo_kit.intervals import column_means, mean_by_group
from robustpo_kit.judging.audits import check_admitted
from robustpo_kit.judging.judges import SCORES

VERDICTS = tuple(SCORES)


def win_table(
    verdicts: pd.DataFrame,
    audit: pd.DataFrame | None = None,
    *,
    unaudited: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Shares of win, tie and lose by policy, and score = win + tie/2, with bootstrap intervals.

    Args:
        verdicts: a row a reply, with the columns policy, prompt_id, verdict, judge (of `compare`);
            those unanswered are in no share.
        audit: of that judge, by `judging.audit`.
        unaudited: take a judge that has no audit or fails it; the table says so.
        draws, seed: of the bootstrap over prompts, whose intervals are at 95 %.

    Returns:
        A row a policy: policy, prompts, replies, then NAME, NAME_low, NAME_high for win, tie, lose,
        score; judge, audited (False under `unaudited`); unanswered (replies), where any is.

    Raises:
        ValueError: the judge has no audit, or fails it, naming the controls.
    """
    marks = check_admitted(verdicts, audit, unaudited=unaudited)
    outcomes = [*VERDICTS, "score"]
    table = mean_by_group(
        _with_outcomes(verdicts),
        "policy",
        outcomes,
        cluster="prompt_id",
        draws=draws,
        seed=seed,
    )
    table = table.rename(columns={"clusters": "prompts", "n": "replies"}).assign(**marks)
    missing = verdicts.loc[verdicts["verdict"] == "unanswered", "policy"].value_counts()
    if len(missing):
        table["unanswered"] = table["policy"].map(missing).fillna(0).astype(int)
    return table


def difference_table(
    verdicts: pd.DataFrame,
    baseline: str,
    audit: pd.DataFrame | None = None,
    *,
    unaudited: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Each policy minus a baseline, paired by prompt: differences of win, lose and score.

    An interval that leaves out 0 is a difference at that level.

    Args:
        verdicts: as for `win_table`.
        baseline: name of the policy that is subtracted.
        audit: of the judge, by `judging.audit`.
        unaudited: take a judge that has no audit or fails it; the table says so.
        draws, seed: of the bootstrap over prompts, whose intervals are at 95 %.

    Returns:
        A row a policy other than the baseline: policy, baseline, prompts (answered by both), then
        NAME, NAME_low, NAME_high for win, lose, score; judge, audited.

    Raises:
        ValueError: the baseline is not among the policies, or is alone; the judge as in
            `win_table`.
    """
    marks = check_admitted(verdicts, audit, unaudited=unaudited)
    outcomes = ["win", "lose", "score"]
    by_prompt = _with_outcomes(verdicts).groupby(["policy", "prompt_id"], sort=False)
    means = by_prompt[outcomes].mean()
    policies = list(dict.fromkeys(verdicts["policy"]))
    if baseline not in policies:
        raise ValueError(f"baseline = '{baseline}': not among the policies {', '.join(policies)}")
    if len(policies) == 1:
        raise ValueError(f"verdicts: of '{baseline}' alone; another policy is needed")
    rows = []
    for policy in policies:
        if policy == baseline:
            continue
        paired = (means.loc[policy] - means.loc[baseline]).dropna()
        row = {"policy": policy, "baseline": baseline, "prompts": len(paired)}
        rows.append(row | column_means(paired, outcomes, draws=draws, seed=seed))
    return pd.DataFrame(rows).assign(**marks)


def _with_outcomes(verdicts: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` with a column 0 or 1 for each of win, tie, lose, and the score; NaN unanswered."""
    answered = verdicts["verdict"] != "unanswered"
    columns = {
        name: (verdicts["verdict"] == name).astype(float).where(answered) for name in VERDICTS
    }
    return verdicts.assign(**columns, score=verdicts["verdict"].map(SCORES))
