"""One run of a study on real text: a dose of what goes wrong, a method, clean held-out rows."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit import calibration, data, mixture, objectives, training
from robustpo_kit.data import Preference, PreferenceSet, take
from robustpo_kit.experiments.lab import Lab
from robustpo_kit.experiments.steps import train_config
from robustpo_kit.experiments.supervised import adapted
from robustpo_kit.measures import tidy
from robustpo_kit.policies import Policy
from robustpo_kit.profiles import Profile
from robustpo_kit.records import digest

Harmed = tuple[PreferenceSet, np.ndarray]  # N training rows, and which of them were harmed

ROWS = ("base", "sft", "golden")  # of every table: nothing is trained
STEPS = {"step_loss": "loss", "step_ess": "ess"}  # outcomes, and the history's columns
# outcomes, and the columns of `scoring.scored_replies`; a win is against the human reply, by gold
SAMPLED = {
    "sampled_gold": "gold",
    "sampled_win": "win",
    "sampled_reward": "reward",
    "sampled_confidence": "confidence",
}
PAIRS = ("pair_gap", "pair_flipped")  # mean log-probabilities a token, preferred minus other; 0, 1
OTHER_TABLES = {"steps": tuple(STEPS), "pairs": PAIRS}  # of a study, by title: their outcomes


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """What decides the outcomes of one method at one dose and seed, or of one of ROWS."""

    cfg: Profile
    seed: int
    method: str  # as tables name it
    spec: str = ""  # of objectives.build
    harm: str = ""  # in HARMS
    dose: float = 0.0
    weight: str = "ones"  # in WEIGHTS
    sampled: bool = False  # whether replies are sampled and scored, too
    gaps: bool = False  # whether the training pairs are scored after training, too

    @property
    def setting(self) -> tuple[Profile, int]:
        """Runs of one setting follow one another, and share what is cached."""
        return self.cfg, self.seed

    @property
    def inputs(self) -> tuple[str, ...]:
        """Digests of what a run reads: the task's rows, and their stored replies."""
        stores = (self.cfg.task, f"{self.cfg.task}{mixture.EXTRA}")
        return _rows_digest(self.cfg.task), *map(mixture.store_digest, stores)

    def problem(self) -> str | None:
        """What is wrong with a run before anything is trained; None where nothing is."""
        checks: dict[str, tuple[str, Any]] = {
            "harm": (self.harm, HARMS),
            "weight": (self.weight, WEIGHTS),
        }
        for field, (value, known) in checks.items():
            if value not in known:
                return f"{field} '{value}' is unknown; choose one of {', '.join(known)}"
        if self.weight != "ones" and not objectives.build(self.spec).needs_h:
            return f"weight '{self.weight}', which {self.spec} does not look at"
        return share_problem(self.dose)


def share_problem(dose: float) -> str | None:
    """What is wrong with a share; None where nothing is."""
    return None if 0 <= dose <= 1 else f"dose {dose}; a share between 0 and 1 is expected"


@functools.cache
def _rows_digest(task: str) -> str:
    rows = data.load(task)
    return digest(rows.rows, rows.template)


def study_run(run: StudyRun) -> dict[str, object]:
    """Train and measure: `values` holds row_id, outcome and value (`measures.Candidates`).

    Beside OUTCOMES, of the held-out rows: each step's loss and effective sample size (STEPS, the
    row_id is the step); where `run` asks for them, SAMPLED of the replies, and PAIRS of the
    training pairs.
    """
    lab = _lab(run.cfg, run.seed)
    outcomes = _outcomes_of_rows(lab, run) if not run.spec else _outcomes(lab, run)
    values = outcomes.assign(value=outcomes["value"].round(5))
    return {"values": values.to_dict("list")}


@functools.lru_cache(maxsize=1)
def _lab(cfg: Profile, seed: int) -> Lab:
    return Lab(cfg, seed)


def _outcomes_of_rows(lab: Lab, run: StudyRun) -> pd.DataFrame:
    """Outcomes of one of ROWS."""
    candidates = lab.candidates()
    if run.method == "golden":
        outcomes = candidates.best_possible()
    elif run.method == "base":
        outcomes = candidates.outcomes(lab.steps.candidates.base_logps())
    else:
        outcomes = candidates.outcomes(candidates.reference_logps)
    if not run.sampled:
        return outcomes
    start = {replies.name: replies for replies in lab.untrained()}[run.method]
    return pd.concat([outcomes, _of_replies(start.replies)])


def _outcomes(lab: Lab, run: StudyRun) -> pd.DataFrame:
    """Outcomes of a method, trained from the SFT policy on harmed rows."""
    rows, harmed = HARMS[run.harm](lab, run.dose)
    objective = objectives.build(run.spec, seed=run.seed)
    cfg = run.cfg.of_method(objective.base)
    if objective.needs_h:
        rows = rows.with_h(WEIGHTS[run.weight](lab, rows, harmed))
    policy = adapted(lab.sft_policy(), cfg.lora_targets, cfg.lora_rank, seed=run.seed)
    record = training.train(policy, rows, objective, train_config(cfg, run.seed))
    logps, _ = training.score(policy, lab.splits["eval"])
    parts = [lab.candidates().outcomes(logps.double().numpy()), _of_steps(record.history)]
    if run.sampled:
        parts.append(_of_replies(lab.replies_of(policy)))
    if run.gaps:
        parts.append(_of_pairs(policy, rows, harmed))
    return pd.concat(parts)


def _of_steps(history: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """STEPS of a training run."""
    values = {name: np.array([row[field] for row in history]) for name, field in STEPS.items()}
    return tidy([str(row["step"]) for row in history], values)


def _of_replies(replies: pd.DataFrame) -> pd.DataFrame:
    """SAMPLED, the mean over a row's replies."""
    wins = replies["verdict"].map({"win": 1.0, "tie": 0.5, "lose": 0.0})
    means = replies.assign(win=wins).groupby("row_id", sort=False)[list(SAMPLED.values())].mean()
    values = {name: means[column].to_numpy() for name, column in SAMPLED.items()}
    return tidy(list(means.index), values)


def _of_pairs(policy: Policy, rows: PreferenceSet, harmed: np.ndarray) -> pd.DataFrame:
    """PAIRS, of the first two responses of the training rows."""
    logps, lengths = training.score(policy, rows)
    means = (logps / lengths).double().numpy()
    gap, flipped = PAIRS
    values = {gap: means[:, 0] - means[:, 1], flipped: harmed.astype(float)}
    return tidy([row.row_id for row in rows], values)


def contaminated(lab: Lab, dose: float) -> Harmed:
    """A synthetic reply in the golden slot of a share of the rows.

    The label follows the claim: column 0 first, the others as the proxy ranks them.
    """
    rows, mask = lab.mixed(dose)
    rewards = lab.proxy().score_set(rows)
    every = np.ones(len(rows), dtype=bool)
    return rows.with_rewards(mixture.rank_first(rewards, every)), mask


def flipped(lab: Lab, dose: float) -> Harmed:
    """Pairs of the golden reply and the first synthetic one, a share of them turned round."""
    pairs = lab.splits["policy"].map(_golden_and_synthetic).flip(dose, lab.seed)
    return pairs, np.array([row.flipped for row in pairs])


def _golden_and_synthetic(row: Preference) -> Preference:
    return take(row, (0, row.sources.index(mixture.SYNTHETIC_SOURCE)))


HARMS: Mapping[str, Callable[[Lab, float], Harmed]] = {
    "contamination": contaminated,
    "flips": flipped,
}


def ones(_lab: Lab, rows: PreferenceSet, _harmed: np.ndarray) -> np.ndarray:
    """Every row alike."""
    return np.ones(len(rows))


def printed(lab: Lab, rows: PreferenceSet, _harmed: np.ndarray) -> np.ndarray:
    """h~ as DoRA prints it (Eq. 6), from confidences of the profile's classifier in all slots."""
    return lab.h(lab.classifier().score_set(rows))


def slot(lab: Lab, rows: PreferenceSet, _harmed: np.ndarray) -> np.ndarray:
    """The weight of the golden slot alone, its share of contamination estimated on these rows."""
    classifier = lab.classifier("per_source", "frozen")
    ratios = classifier.slot_ratios(rows, mixture.SYNTHETIC_SOURCE)
    return calibration.slot_weights(ratios).weights


def mask(_lab: Lab, rows: PreferenceSet, harmed: np.ndarray) -> np.ndarray:
    """What knowing the harmed rows gives: they weigh nothing, the others one on average."""
    kept = ~harmed
    return kept * (len(rows) / max(1, kept.sum()))


# Factors [N] of rows by name: of the lab, the training rows, and which of them were harmed.
WEIGHTS: Mapping[str, Callable[[Lab, PreferenceSet, np.ndarray], np.ndarray]] = {
    "ones": ones,
    "h~": printed,
    "slot": slot,
    "mask": mask,
}
