"""Regressions over many seeds: a slope by method, and its difference between methods.

Three estimates of one slope stand beside one another, since each errs elsewhere:

    by seed    least squares in each seed, then Student's t over the seeds; a difference is paired
    mixed      y ~ x, a random intercept and slope a seed (Laird and Ware, 1982), t of seeds - 1
    clustered  least squares over all rows, errors clustered by seed; p by the wild cluster
               bootstrap with the null imposed (Cameron, Gelbach and Miller, 2008)

With one seed there is one estimate, errors clustered by prompt, which says nothing of other seeds.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from robustpo_kit import margins
from robustpo_kit.analysis.figures import clustered_fit, normalise
from robustpo_kit.analysis.paired import flipped_signs
from robustpo_kit.intervals import t_interval

REPLIES = {"sampled_reward": "reward", "sampled_confidence": "confidence"}  # outcomes of studies
PAIRS = {"pair_gap": "gap", "pair_flipped": "flipped"}
MAIN = ("mixed", "by seed", "one seed")  # estimates, the first one first
FLIPS = 4096  # of signs of whole seeds, where there are more


def wide_outcomes(outcomes: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Outcomes of a study side by side: method, dose, seed, row_id, and a column for each of NAMES.

    Args:
        outcomes: tidy, as a study writes them.
        names: what a column is called, by outcome.
    """
    chosen = outcomes[outcomes["outcome"].isin(names)].replace({"outcome": dict(names)})
    keys = ["method", "dose", "seed", "row_id"]
    wide = chosen.pivot_table(index=keys, columns="outcome", values="value", sort=False)
    return wide.reset_index().rename_axis(columns=None)


def study_replies(outcomes: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Sampled replies of methods, rewards on the unit interval within a seed and dose.

    A seed has its own proxy, and so its own scale.
    """
    table = wide_outcomes(outcomes, REPLIES)
    table = dosed(table[table["method"].isin(methods)])
    by_scale = table.groupby(["seed", "dose"], sort=False)["reward"]
    rewards = by_scale.transform(lambda reward: normalise(reward.tolist()))
    return table.assign(reward=rewards)


def study_margins(pairs: pd.DataFrame, *, beta: float, gamma0: float, tau: float) -> pd.DataFrame:
    """Gaps of a study's training pairs after training, and the margins that gamma-PO gives them.

    Margins are solved over all pairs of a policy at once, at one setting for every policy.

    Args:
        pairs: a study's table of that name.
        beta, gamma0, tau: of gamma-SimPO.

    Returns:
        A row a pair: where (its dose), method, seed, row_id, gap (nats, beta times the difference
        of mean log-probabilities), margin (over gamma0), flipped (0 or 1).
    """

    def solved(gaps: "pd.Series[float]") -> np.ndarray:
        tensor = torch.tensor(gaps.to_numpy(float))
        return margins.target_margins(tensor, gamma0=gamma0, tau=tau).numpy() / gamma0

    table = dosed(wide_outcomes(pairs, PAIRS))
    table["gap"] *= beta
    policies = table.groupby(["method", "where", "seed"], sort=False)
    return table.assign(margin=policies["gap"].transform(solved))


def dosed(table: pd.DataFrame) -> pd.DataFrame:
    """A study's table with its dose in words, `where`; in the order of doses."""
    table = table.sort_values("dose", kind="stable", ignore_index=True)
    return table.assign(where="dose " + table["dose"].map("{:g}".format))


def slope_table(
    table: pd.DataFrame, x: str, y: str, pairs: Sequence[tuple[str, str]], *, level: float = 0.95
) -> pd.DataFrame:
    """Slope of y on x by method, and of each of `pairs` the method's minus the baseline's.

    Args:
        table: a row an observation: where (such as a dose), method, seed, row_id, x and y. Both
            methods of a pair have the same prompts in a seed.
        x, y: its columns.
        pairs: method and baseline.
        level: of the intervals.

    Returns:
        A row a slope or difference, in each `where`: where, method, baseline ("" for a slope),
        estimate (`mixed`, `by seed`, `clustered`, or `one seed` where there is one; `a seed` for
        the least-squares slope of one of several), value, low, high, p_value, converged, seeds,
        seed (of `a seed`), n (rows).
    """
    rows = []
    sides = [(method, "") for method in dict.fromkeys(table["method"])] + list(pairs)
    for where, here in table.groupby("where", sort=False):
        for method, baseline in sides:
            part = here[here["method"].isin([method, baseline])]
            part = part.assign(is_method=(part["method"] == method) * 1.0)
            about = {"where": where, "method": method, "baseline": baseline}
            found = _estimates(part, x, y, "is_method" if baseline else "", level)
            rows += [about | row for row in found]
    return pd.DataFrame(rows)


def main_estimates(table: pd.DataFrame) -> pd.DataFrame:
    """The row of each slope and difference of `slope_table` that verdicts read, the first of MAIN.

    A mixed model that has not converged, or has no error, leaves it to the next.
    """
    rank = table["estimate"].map({name: place for place, name in enumerate(MAIN)})
    ended = table.assign(rank=rank)[table["converged"] & np.isfinite(table["low"])]
    ended = ended.dropna(subset="rank").sort_values("rank", kind="stable")
    kept = ended.drop_duplicates(["where", "method", "baseline"]).sort_index()
    return kept.drop(columns="rank").reset_index(drop=True)


def beside_paper(row: Mapping[Any, Any] | pd.Series, printed: Sequence[float]) -> str:
    """What an interval says of positive differences that a paper prints, by one rule, in words.

    Args:
        row: with low and high.
        printed: differences above zero.
    """
    low, high = float(row["low"]), float(row["high"])
    if low > 0:
        return "positive, as in the paper"
    if high < min(printed):
        numbers = ", ".join(f"{value:+.3f}" for value in printed)
        return f"less than the paper's differences, {numbers}"
    return "the paper's positive difference is not reproduced at this scale, and not refuted"


def _estimates(part: pd.DataFrame, x: str, y: str, side: str, level: float) -> list[dict[str, Any]]:
    """The rows of one slope, or of the interaction of x with the column `side`."""
    seeds = int(part["seed"].nunique())
    about = {"converged": True, "seeds": seeds, "n": len(part)}
    formula = f"{y} ~ {x} * {side}" if side else f"{y} ~ {x}"
    if seeds == 1:
        fit = clustered_fit(formula, part, part["row_id"])
        return [about | {"estimate": "one seed"} | _row(fit, _term(x, side), level)]
    rows: list[dict[str, Any]] = [{"estimate": "mixed"} | _mixed(part, x, y, side, level)]
    each = {seed: _least_squares(own, x, y, side) for seed, own in part.groupby("seed")}
    found, test = t_interval(list(each.values()), level), stats.ttest_1samp(list(each.values()), 0)
    bounds = {"value": found.value, "low": found.low, "high": found.high}
    rows.append({"estimate": "by seed"} | bounds | {"p_value": float(test.pvalue)})
    fit = clustered_fit(formula, part, part["seed"])
    rows.append({"estimate": "clustered"} | _row(fit, _term(x, side), level, seeds - 1))
    rows[-1]["p_value"] = wild_p(fit, _term(x, side), part["seed"])
    rows += [{"estimate": "a seed", "seed": seed, "value": value} for seed, value in each.items()]
    return [about | row for row in rows]


def _term(x: str, side: str) -> str:
    return f"{x}:{side}" if side else x


def _row(fit: Any, term: str, level: float, df: float = np.inf) -> dict[str, float]:
    """Estimate, interval and p of a term, by Student's t."""
    value, se = float(fit.params[term]), float(fit.bse[term])
    half = float(stats.t.ppf((1 + level) / 2, df)) * se
    p_value = float(2 * stats.t.sf(abs(value) / max(se, 1e-300), df))
    return {"value": value, "low": value - half, "high": value + half, "p_value": p_value}


def _least_squares(part: pd.DataFrame, x: str, y: str, side: str) -> float:
    """A slope, or the difference of the slopes on both sides."""
    if not side:
        return float(np.polyfit(part[x], part[y], 1)[0])
    ends = [_least_squares(part[part[side] == end], x, y, "") for end in (1.0, 0.0)]
    return ends[0] - ends[1]


def _mixed(part: pd.DataFrame, x: str, y: str, side: str, level: float) -> dict[str, Any]:
    """By restricted maximum likelihood, with independent random effects of a seed.

    x is centred, so that intercept and slope of a seed can be taken as independent; both columns
    are in their standard deviations, which the search needs. Without a fit all is NaN.
    """
    import statsmodels.formula.api as smf

    scale = part[y].std() / part[x].std()
    part = part.assign(
        centred=(part[x] - part[x].mean()) / part[x].std(), y=part[y] / part[y].std()
    )
    effects, formula = {"slope": "0 + centred"}, "y ~ centred"
    if side:
        effects |= {"side": f"0 + {side}", "both": f"0 + centred:{side}"}
        formula += f" * {side}"
    model = smf.mixedlm(formula, part, groups="seed", re_formula="1", vc_formula=effects)
    with warnings.catch_warnings():  # of a variance at zero, which is a fit; `converged` is kept
        warnings.simplefilter("ignore")
        try:
            fit = model.fit(reml=True, method=["lbfgs", "powell"])
        except np.linalg.LinAlgError:
            return dict.fromkeys(("value", "low", "high", "p_value"), np.nan) | {"converged": False}
    row = _row(fit, _term("centred", side), level, part["seed"].nunique() - 1)
    for name in ("value", "low", "high"):
        row[name] *= scale
    return row | {"converged": bool(fit.converged)}


def wild_p(fit: Any, term: str, clusters: "pd.Series[Any]", *, seed: int = 0) -> float:
    """p of "the term is zero" by the wild cluster bootstrap: |t| under flipped signs of residuals.

    Residuals of the fit without the term change sign by whole clusters. Of eight clusters there are
    128 flips, and the least p is 1 / 128.

    Args:
        fit: clustered least squares of statsmodels.
        term: of its parameters.
        clusters: [N] of the rows.
        seed: of the flips, where they are drawn.
    """
    design, y = np.asarray(fit.model.exog), np.asarray(fit.model.endog)
    place = list(fit.params.index).index(term)
    rest = np.delete(design, place, axis=1)
    fitted = rest @ np.linalg.lstsq(rest, y, rcond=None)[0]
    codes = pd.factorize(clusters)[0]
    count = int(codes.max()) + 1
    signs = np.vstack([np.ones(count), flipped_signs(count, FLIPS, seed)])[:, codes]  # [flips, N]
    drawn = fitted + signs * (y - fitted)
    bread = np.linalg.pinv(design)  # [k, N]
    residuals = drawn - drawn @ bread.T @ design.T
    scores = residuals * bread[place]
    sums = np.stack([scores[:, codes == code].sum(axis=1) for code in range(count)], axis=1)
    t_values = np.abs(drawn @ bread[place]) / np.sqrt(np.maximum((sums**2).sum(axis=1), 1e-300))
    return float((t_values[1:] >= t_values[0] - 1e-9).mean().clip(1 / (len(t_values) - 1)))
