"""Sentences that the texts state, made from the committed tables: `python tests/claims.py --write`.

A text holds `<!--claim NAME-->words<!--/claim-->` on one line (a reader sees the words alone), and
CLAIMS says by NAME how the words follow from the tables of `data/results/reference`. `--write` puts
them in, as `make claims` does after tables are made anew; test_claims.py holds the texts to them.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from robustpo_kit.analysis import (
    UNFINISHED,
    among_all,
    beside_paper,
    declared_contrasts,
    item_readings,
    item_table,
    mean_difference,
    paired_rows,
    paper_values,
    verdict,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
MARK = re.compile(r"<!--claim (\w+)-->(.*?)<!--/claim-->")
CLAIMS: dict[str, Callable[[], str]] = {}


def texts() -> list[Path]:
    """The files that state what was measured."""
    notebooks = sorted((ROOT / "notebooks" / "text").glob("*.py"))
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *pages, *notebooks]


def claim(function: Callable[[], str]) -> Callable[[], str]:
    """Adds a function without arguments to CLAIMS under its name."""
    CLAIMS[function.__name__] = function
    return function


def write() -> None:
    """Puts the words of the tables into every marked place of the texts."""
    for path in texts():
        before = path.read_text(encoding="utf-8")
        after = MARK.sub(
            lambda mark: f"<!--claim {mark[1]}-->{CLAIMS[mark[1]]()}<!--/claim-->", before
        )
        if after != before:
            path.write_text(after, encoding="utf-8")
            print("written:", path.relative_to(ROOT))


# ---------------------------------------------------------------- tables and numbers


def table(name: str, folder: str = "reference") -> pd.DataFrame:
    return pd.read_csv(RESULTS / folder / f"{name}.csv")


def only(name: str, **values: object) -> "pd.Series":
    """The one row of the table NAME whose columns have these values."""
    found = table(name)
    for column, value in values.items():
        found = found[found[column] == value]
    assert len(found) == 1, f"{name}: {len(found)} rows have {values}"
    return found.iloc[0]


def interval(row: "pd.Series", value: str, places: int = 2, sign: str = "") -> str:
    """VALUE [VALUE_low, VALUE_high], the bounds else in low and high."""
    names = [value, f"{value}_low", f"{value}_high"]
    if names[1] not in row:
        names[1:] = ["low", "high"]
    middle, low, high = (f"{row[name]:{sign}.{places}f}" for name in names)
    return f"{middle} [{low}, {high}]"


def span(values: "pd.Series", places: int = 2) -> str:
    return f"{values.min():.{places}f} to {values.max():.{places}f}"


# ---------------------------------------------------------------- sources, classifiers, rewards


@claim
def source_distances() -> str:
    """AUC of the number of words alone, and energy distance, each against the golden column."""
    names = {"smollm2": "SmolLM2", "human_wrong": "the wrong human solution"}
    rows = {name: only("source_distances", source=source) for source, name in names.items()}
    words = [
        f"{name} AUC {row['auc_of_length']:.2f}, energy distance {row['energy_distance']:.3f}"
        for name, row in rows.items()
    ]
    return "; ".join(words)


def auc(classifier: str, head: str) -> str:
    """AUC, of all replies and of those that are not cut at the limit, and ECE of a classifier."""
    row = only("classifier_metrics", classifier=classifier, head=head, stage="temperature")
    before = only("classifier_metrics", classifier=classifier, head=head, stage="before")
    ece = f"ECE {before['ece']:.3f} before, {row['ece']:.3f} after temperature"
    whole = f"{interval(row, 'auc_whole')} without cut replies"
    return f"AUC {interval(row, 'auc')}, {whole}; {ece}"


@claim
def classifier_shared() -> str:
    return auc("fine-tuned, shared", "rest")


@claim
def classifier_per_source() -> str:
    return auc("frozen, per source", "smollm2")


@claim
def classifier_aucs() -> str:
    rows = [
        only("classifier_metrics", classifier="frozen, per source", head=head, stage="temperature")
        for head in ("smollm2", "human_wrong")
    ]
    replies, wrong = (f"{row['auc']:.2f} ({row['auc_whole']:.2f})" for row in rows)
    return (
        f"golden replies from SmolLM2's: AUC {replies}; from wrong human solutions: {wrong}; in "
        "brackets without replies that are cut at the limit"
    )


@claim
def classifier_maps() -> str:
    """What each calibration map does to the NLL of a pooled classifier, or of a head."""
    words = []
    for (name, head), part in table("classifier_metrics").groupby(
        ["classifier", "head"], sort=False
    ):
        nll = part.set_index("stage")["nll"]
        words.append(
            f"{name} ({head}) {nll['before']:.3f}, {nll['temperature']:.3f}, {nll['isotonic']:.3f}"
        )
    return "; ".join(words)


@claim
def confidence_by_source() -> str:
    means = table("confidence_by_source").groupby("source")["c"].mean()
    names = {"human_correct": "correct human", "human_wrong": "wrong human", "smollm2": "SmolLM2"}
    return ", ".join(f"{name} {means[source]:.2f}" for source, name in names.items())


@claim
def h_means() -> str:
    rows = table("h_by_sample").query("classifier == 'frozen, per source'")
    means = rows.groupby("sample")["h"].mean()
    return f"{means['clean']:.2f} clean, {means['contaminated']:.2f} contaminated"


@claim
def fitted_accuracy() -> str:
    rows = table("reward_accuracy").set_index("kind")
    matched = rows[[" elsewhere" in kind for kind in rows.index]]
    human = interval(rows.loc["human_correct > human_wrong"], "accuracy")
    source = only("reward_correlation", scope="within sources", model="fitted")
    return (
        f"a matching reply from a mismatched one: accuracy {span(matched['accuracy'])}; a correct "
        f"solution from a wrong one: {human}, where 0.5 is a coin; its correlation with the source "
        f"classifier within sources: {interval(source, 'pearson')}"
    )


@claim
def judge_audit() -> str:
    """Controls that the shipped judge fails, and its scores against the human reply."""
    rows = table("judge_audit")
    failed = int((rows["result"] == "fail").sum())
    tested = int(rows["result"].isin(["pass", "fail"]).sum())
    scored = rows[~rows["control"].isin(["swapped order", "length slope"])]
    words = [f"{row['control']} {row['value']:.3f}" for _, row in scored.iterrows()]
    return (
        f"of {tested} controls of its audit it fails {failed}; scores against the human reply: "
        f"{', '.join(words)}"
    )


# ---------------------------------------------------------------- DoRA


def scores(*policies: str) -> str:
    found = table("dora_win_rates").set_index("policy")["score"]
    return ", ".join(f"{found[policy]:.3f}" for policy in policies)


@claim
def dora_scores() -> str:
    sft, erm, dora = scores("sft", "dpo_pl erm", "dpo_pl dora").split(", ")
    return f"from {sft} (SFT) to {erm} with Plackett-Luce DPO (ERM) and {dora} (DoRA)"


def win_lose(policy: str) -> str:
    row = only("dora_win_rates", policy=policy)
    return f"{100 * row['win']:.0f} / {100 * row['lose']:.0f}"


@claim
def win_lose_erm() -> str:
    return win_lose("dpo_pl erm")


@claim
def win_lose_dora() -> str:
    return win_lose("dpo_pl dora")


@claim
def dora_against_erm() -> str:
    """How many of the differences to ERM are shown, all of them looked at."""
    found = among_all(table("dora_differences"), "score")
    sentences = [verdict(row, "score") for _, row in found.iterrows()]
    shown = sum(sentence.startswith(("gains", "loses")) for sentence in sentences)
    return f"{shown} of {len(found)} differences to ERM are shown"


@claim
def dora_distance() -> str:
    """Log ratio to the reference on own replies, nats."""
    names = {"dpo_pl erm": "ERM", "dpo_pl dora": "DoRA", "dpo_pl dro": "DRO"}
    rows = {name: only("dora_quality", policy=policy) for policy, name in names.items()}
    return ", ".join(f"{name} {interval(row, 'log_ratio')}" for name, row in rows.items())


@claim
def dora_samples() -> str:
    """Effective sample sizes, the last step left out, which has what remains of the rows."""
    steps = table("dora_curves")
    whole = steps[steps["step"] < steps["step"].max()]
    means = whole.groupby("policy", sort=False)["ess"].mean()
    words = [
        f"{means[f'dpo_pl {name}']:.1f} ({name})" for name in ("erm", "dro", "reweight", "dora")
    ]
    return f"of {whole['ess'].max():.0f}, on average: {', '.join(words)}"


@claim
def dora_plackett_luce() -> str:
    rows = among_all(table("dora_differences"), "score")
    row = rows[rows["policy"] == "dpo_pl dora"].iloc[0]
    return f"DoRA against ERM {verdict(row, 'score')}"


@claim
def dora_window() -> str:
    errors = table("dora_window").set_index("micro_batch")["error"]
    words = [f"{100 * errors[count]:.0f} % at {count}" for count in (1, 2, 4)]
    return f"off by {', '.join(words)} of eight samples"


@claim
def slope_difference() -> str:
    return interval(only("confidence_slope_difference"), "difference", 3, "+")


@claim
def slopes() -> str:
    rows = table("confidence_slopes").to_dict("records")
    verbs = ("rises by", "falls by")
    return "; ".join(f"{row['policy']}: {verdict(row, 'slope', verbs=verbs)}" for row in rows)


@claim
def slope_against_paper() -> str:
    printed = paper_values("dora").query("table == 'Figure 4'")["value"]
    return beside_paper(only("confidence_slope_difference"), printed.tolist())


# ---------------------------------------------------------------- gamma-PO


@claim
def gamma_against_base() -> str:
    rows = among_all(table("gamma_differences"), "score").set_index("policy")
    names = {"gamma-simpo": "SimPO", "gamma-dpo": "DPO"}
    words = [f"over {name} {verdict(rows.loc[policy], 'score')}" for policy, name in names.items()]
    return "; ".join(words)


@claim
def detectors() -> str:
    """AUC of h~ and of c of the slot for rows that are not contaminated, with and without cut."""
    words = []
    for samples, name in (("all", "of all rows"), ("none cut", "without cut replies")):
        rows = [only("slot_detectors", weight=w, samples=samples) for w in DETECTORS]
        found = ", ".join(f"{row['weight']} {interval(row, 'auc')}" for row in rows)
        words.append(f"{name} ({rows[0]['contaminated']} contaminated of {rows[0]['n']}) {found}")
    return "; ".join(words)


DETECTORS = ("h~ relative", "c of the golden slot")


@claim
def rows_of_record() -> str:
    """Rows and prompts of the run of record: to train on, and to evaluate on."""
    trained = len(table("h_by_sample").query("classifier == 'frozen, per source'"))
    judged = only("dora_quality", policy="sft")
    return f"{trained} training rows, {judged['n']} evaluation rows of {judged['prompts']} prompts"


@claim
def proxy_and_confidence() -> str:
    """Correlation of the proxy with the confidence that weighs, overall and within sources."""
    rows = table("reward_correlation").query("model == 'proxy'").set_index("scope")
    low, high = "pearson_low", "pearson_high"
    words = [
        f"{row['pearson']:.2f} [{row[low]:.2f}, {row[high]:.2f}] {scope}"
        for scope, row in rows.iterrows()
    ]
    return ", ".join(words)


@claim
def gamma_margins() -> str:
    steps = table("gamma_curves").query("policy == 'gamma-simpo'")
    return f"{steps['gamma_min'].min():.2f} to {steps['gamma_max'].max():.2f} around gamma0 = 4"


@claim
def gamma_dpo_margins() -> str:
    steps = table("gamma_curves").query("policy == 'gamma-dpo'")
    last = steps.iloc[-2]  # the last one has what is left of the rows
    return f"in step {last['step']:.0f} from {last['gamma_min']:.2f} to {last['gamma_max']:.2f}"


@claim
def gamma_seconds() -> str:
    seconds = table("gamma_step_seconds").set_index("policy")["median_step_seconds"]
    pairs = [("SimPO", "simpo"), ("DPO", "dpo")]
    words = [
        f"{seconds[f'gamma-{key}']:.1f} against {seconds[key]:.1f} s over {name}"
        for name, key in pairs
    ]
    return ", ".join(words)


@claim
def gap_medians() -> str:
    rows = table("margin_quantiles")
    medians, shares = span(rows["q50"], 1), span(100 * rows["positive"], 0)
    return f"the median gap is {medians} and {shares} % are positive"


@claim
def margin_spans() -> str:
    spread = table("strength_published").set_index("setting")["relative_spread"]
    qwen, mistral = (100 * spread.filter(like=name).item() for name in ("qwen", "mistral"))
    return f"at Qwen's setting they span {qwen:.0f} % of gamma0, at Mistral's {mistral:.0f} %"


# ---------------------------------------------------------------- the toy world


def contrasts(outcome: str) -> str:
    """The contrasts of the toy study that survive Holm over all of an outcome."""
    found = table("toy_summary").query("outcome == @outcome").dropna(subset="difference")
    found = among_all(found)
    shown = []
    for _, row in found.iterrows():
        sentence = verdict(row)
        if sentence.startswith(("gains", "loses")):
            shown.append(f"{row['method']} {sentence} ({row['condition']})")
    listed = "; ".join(shown) or "none"
    return f"of {len(found)} contrasts with ERM, {len(shown)} hold after Holm: {listed}"


@claim
def toy_contrasts() -> str:
    return contrasts("win_rate")


@claim
def toy_contrasts_valid() -> str:
    return contrasts("win_rate_valid")


@claim
def toy_harm() -> str:
    """ERM at the strongest dose against ERM on clean data, in its win rate."""
    names = {"contamination": "contaminated rows", "label_noise": "flipped rankings"}
    found = table("toy_dose_summary").query("outcome == 'win_rate'")
    words = []
    for knob, name in names.items():
        rows = found[found["knob"] == knob]
        row = rows.loc[rows["dose"].idxmax()]
        words.append(f"with {100 * row['dose']:.0f} % {name} ERM {verdict(row)}")
    return f"over {row['n']:.0f} worlds, {'; '.join(words)}"


SEEING, BLIND = "dose_real", "dose_real_blind"


@claim
def real_harm() -> str:
    """Contamination of 0.6 against none, where the proxy sees what gold sees."""
    return harm_of_erm(SEEING, "dpo_pl erm")


@claim
def blind_harm() -> str:
    """The same where the proxy is blind to what reads as a model's."""
    return harm_of_erm(BLIND, "dpo_pl erm")


@claim
def flips_harm() -> str:
    """Flips of 0.45 against none, in both studies; no proxy ranks pairs."""
    counts = [len(set(table("outcomes", f"studies/{study}")["seed"])) for study in (SEEING, BLIND)]
    found = [harm_of_erm(study, "dpo erm") for study in (SEEING, BLIND)]
    return "; ".join(f"{n} seeds: {words}" for n, words in zip(counts, found, strict=True))


@claim
def mild_harm() -> str:
    """Dose 0.3 in the second study, exploratory."""
    rows = table("contrasts", f"studies/{BLIND}").query("kind == 'exploratory'")
    rows = rows[rows["where"].str.startswith("dose 0.3")]
    harms = {"dpo_pl erm": "contamination", "dpo erm": "flips"}
    words = [
        f"{harms[row['method']]}, {row['outcome'].replace('_', ' ')}, {verdict(row)}"
        for row in rows.to_dict("records")
        if row["outcome"] in ("implicit_accuracy", "expected_gold")
    ]
    return "; ".join(words)


@claim
def below_sft() -> str:
    """What the strongest doses leave of training, against the SFT policy, exploratory."""
    outcomes = table("outcomes", f"studies/{BLIND}")
    words = []
    for method, harm, dose in (("dpo_pl erm", "contamination", 0.6), ("dpo erm", "flips", 0.45)):
        for outcome in ("implicit_accuracy", "expected_gold"):
            where = {"where": {"dose": dose}, "against": {}}
            found = mean_difference(paired_rows(outcomes, method, "sft", outcome, **where))
            span = f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
            words.append(f"{harm} {dose}, {outcome.replace('_', ' ')} {span}")
    return "; ".join(words)


@claim
def flips_likelihood() -> str:
    """Log-likelihood of golden replies under flips, nats a token."""
    rows = table("contrasts", f"studies/{BLIND}").query("outcome == 'golden_logp'")
    row = rows[(rows["method"] == "dpo erm") & rows["where"].str.startswith("dose 0.45")].iloc[0]
    return verdict(row.to_dict(), verbs=("rises by", "falls by"))


def harm_of_erm(study: str, method: str) -> str:
    rows = table("contrasts", f"studies/{study}").query("kind == 'primary' and method == @method")
    return "; ".join(
        f"{row['outcome'].replace('_', ' ')} {verdict(row)}" for row in rows.to_dict("records")
    )


def of_study(study: str) -> str:
    """The primary contrasts of a study on real text, or that its runs have not ended."""
    path = RESULTS / "studies" / study / "contrasts.csv"
    told = declared_contrasts(study, pd.read_csv(path) if path.exists() else None)
    if not told["finished"].all():
        return UNFINISHED
    words = [
        f"{row['method']} over {row['baseline']} {row['says']} ({row['where']})"
        for row in told.to_dict("records")
    ]
    return f"{told['outcome'].iloc[0].replace('_', ' ')}, {'; '.join(words)}"


ON_TEXT = ("methods_real", "flips_real", "hh_flips")
CLAIMS |= {name: lambda name=name: of_study(name) for name in ON_TEXT}


def primaries(study: str, harm: str) -> str:
    """The primary contrasts of a study in the toy world; what is not gold is named."""
    words = []
    for row in table("contrasts", f"studies/{study}").query("kind == 'primary'").to_dict("records"):
        where, said = (
            f"{100 * float(row['where'].removeprefix('dose ')):.0f} % {harm}",
            verdict(row),
        )
        if row["outcome"] != "gold":
            where = f"{row['outcome'].replace('_', ' ')}, {where}"
            said = verdict(row, places=4)
        words.append(f"{row['method']} over {row['baseline']} {said} ({where})")
    return "; ".join(words)


@claim
def phase_primaries() -> str:
    harms = {"phase_contamination": "contaminated rows", "phase_flips": "flipped labels"}
    return "; ".join(primaries(study, harm) for study, harm in harms.items())


@claim
def phase_at_kl() -> str:
    """The shown primary once more, where each path has the same divergence from its start."""
    rows = table("cells", "studies/phase_contamination").query("outcome == 'gold_at_kl'")
    rows = rows.query("axis == 'base' and method == 'reweight slot' and baseline == 'ERM'")
    row = rows[rows["dose"] == 0.6].iloc[0]
    return f"{verdict(row)}, in {row['seeds']} of {row['worlds']} worlds"


@claim
def phase_trusted() -> str:
    """The slot weight over ERM with less of what it needs to know."""
    rows = table("cells", "studies/phase_contamination").query("outcome == 'gold' and dose == 0.6")
    rows = rows.query("method == 'reweight slot' and baseline == 'ERM'").set_index("axis")
    names = {
        "classifier 32 rows": "with 32 trusted lists",
        "classifier untrusted": "with a classifier of the contaminated rows themselves",
        "reward bias 1.5": "with a reward that likes style",
    }
    return "; ".join(f"{words} {verdict(rows.loc[axis])}" for axis, words in names.items())


def over_start(methods: "list[str]") -> str:
    rows = table("cells", "studies/self_training").query("axis == 'base' and outcome == 'gold'")
    rows = rows[rows["baseline"] == "SFT"].set_index("method")
    return "; ".join(f"{name} {rows.loc[name, 'difference']:+.2f}" for name in methods)


@claim
def rso_over_start() -> str:
    return over_start(["DPO-PL", "DoRA DPO-PL", "RSO DPO-PL"])


@claim
def rso_at_kl() -> str:
    rows = table("cells", "studies/self_training").query("axis == 'base'")
    rows = rows.query("outcome == 'gold_at_kl' and method == 'DoRA DPO-PL'").set_index("baseline")
    return verdict(rows.loc["RSO DPO-PL"])


@claim
def flip_primaries() -> str:
    return primaries("phase_flips", "flipped labels")


def of_cells(study: str, dose: float, baseline: str, methods: "list[str]") -> str:
    """Differences of gold in cells of a study in the toy world without a further change."""
    rows = table("cells", f"studies/{study}").query("axis == 'base' and outcome == 'gold'")
    rows = rows[(rows["dose"] == dose) & (rows["baseline"] == baseline)].set_index("method")
    return "; ".join(f"{name} {verdict(rows.loc[name])}" for name in methods)


@claim
def flip_costs() -> str:
    rows = table("contrasts", "studies/phase_flips").query("outcome == 'gold'")
    rows = rows[rows["where"] == "dose 0.4 against dose 0.0"].set_index("method")
    return "; ".join(f"{name} {verdict(rows.loc[name])}" for name in ("DPO", "SimPO"))


@claim
def flip_over_sft() -> str:
    return of_cells("phase_flips", 0.3, "SFT", ["DPO", "rDPO", "SimPO", "gamma-SimPO"])


@claim
def flip_lists() -> str:
    words = []
    for dose in (0.2, 0.4):
        for name, plain in (("DPO-PL, DoRA", "DPO-PL"), ("LIRE, DoRA", "LIRE")):
            words.append(f"{100 * dose:.0f} %, {of_cells('phase_flips', dose, plain, [name])}")
    return "; ".join(words)


@claim
def pairwise_primaries() -> str:
    return primaries("pairwise", "contaminated rows")


@claim
def ablation_primaries() -> str:
    harms = {"ablations": "contaminated rows", "ablations_tau": "flipped labels"}
    return "; ".join(primaries(study, harm) for study, harm in harms.items())


@claim
def self_training_primaries() -> str:
    """DoRA over the plain loss after three rounds, and over RSO, in gold of the toy world."""
    rows = table("contrasts", "studies/self_training").query("kind == 'primary'")
    return "; ".join(
        f"{row['method']} over {row['baseline']} {verdict(row)}" for row in rows.to_dict("records")
    )


@claim
def paper_items() -> str:
    """How many tables and figures of the papers have which verdict."""
    readings = item_readings()
    counts = item_table(readings)["verdict"].value_counts()
    plural = {"agrees": "agree", "differs": "differ", "not shown": "are not shown"}
    plural |= {"by construction": "hold or fail by construction"}
    plural |= {"no claim": "claim nothing", "cannot be tested here": "cannot be tested here"}
    words = ", ".join(f"{counts[name]} {plural[name]}" for name in plural if name in counts)
    ours = readings.groupby(["paper", "item"]).ngroups
    return f"of the papers' {counts.sum()} tables and figures {words}; {ours} have a number of ours"


@claim
def flip_real() -> str:
    rows = table("contrasts", "studies/dose_real_blind").query("kind == 'primary'")
    rows = rows[(rows["method"] == "dpo erm") & (rows["outcome"] == "implicit_accuracy")]
    return f"DPO {verdict(rows.iloc[0])}"


@claim
def detection_primaries() -> str:
    """Cross-fitted scores over length alone, a fifth of the labels turned."""
    rows = table("primaries", "studies/detection").to_dict("records")
    return "; ".join(f"{row['task']} {verdict(row)}" for row in rows)


@claim
def detection_how_to() -> str:
    """What its gain over length stands beside: a fifth of the labels turned."""
    row = table("flips", "studies/detection").query("task == 'how_to' and rate == 0.2").iloc[0]
    names = {"ours": "the scores", "length": "length alone", "random": "a list by lot"}
    return ", ".join(
        f"{said} {interval(row, f'average_precision_{name}')}" for name, said in names.items()
    )


@claim
def detection_over_random() -> str:
    """The same over a list by lot; exploratory."""
    rows = table("primaries", "studies/detection").drop(columns="p_adjusted").to_dict("records")
    return "; ".join(f"{row['task']} {verdict(row, 'over_random')}" for row in rows)


@claim
def detection_coverage() -> str:
    """Of the declared intervals, and of the bound, over all cells of the tasks."""
    rows = table("primaries", "studies/detection").to_dict("records")
    said = [
        f"{row['task']} {row['covered']:.2f} [{row['covered_low']:.2f}, {row['covered_high']:.2f}]"
        for row in rows
    ]
    cells = table("flip_cells", "studies/detection")
    held = (cells["rate"] <= cells["bound_high"]).sum()
    none = cells["trusted"].isna().sum()
    said = [", ".join(said), f"{none} of {len(cells)} cells give no estimate"]
    return "; ".join([*said, f"the bound holds in {held}"])


@claim
def detection_ece() -> str:
    """Calibration error of the flip probabilities over the rates at which labels were turned."""
    rows = table("flips", "studies/detection").query("rate > 0")
    said = []
    for task, part in rows.groupby("task", sort=False):
        trusted, bound = (f"{span(part[f'ece_{name}'])}" for name in ("trusted", "bound"))
        said.append(f"{task} {trusted}, at the bound {bound}")
    return "; ".join(said)


@claim
def detection_confident() -> str:
    """What confident learning counts where no label is turned."""
    rows = table("flips", "studies/detection").query("rate == 0")
    said = [f"{row.task} {row.confident_bias:.2f}" for row in rows.itertuples()]
    return ", ".join(said)


@claim
def detection_slot_intervals() -> str:
    """Coverage of the intervals of contamination, and the calibration error of its rows."""
    rows = table("contamination", "studies/detection")
    covers = ", ".join(f"{row.covers:.3g} at {row.share:.0%}" for row in rows.itertuples())
    seeds = rows["seeds"].min()
    return f"{covers} ({seeds} seeds each); calibration error {span(rows['ece'].dropna(), 3)}"


@claim
def detection_slots() -> str:
    rows = table("contamination", "studies/detection").query("share > 0")
    said = [
        f"{row.average_precision_ours:.2f} at {row.share:.0%} "
        f"(length alone {row.average_precision_length:.2f})"
        for row in rows.itertuples()
    ]
    bias = rows["bias"].abs().max()
    said = ", ".join(said)
    return f"average precision {said}; the estimated share is off by at most {bias:.3f} on average"


@claim
def toy_mass() -> str:
    """The valid mass that SFT leaves, and what each end of the table of losses makes of it."""
    started = table("toy_losses")["sft_mass"].mean()
    rows = table("toy_losses_summary").query("outcome == 'mass' and method == 'erm'")
    ends = rows.sort_values("mean").iloc[[0, -1]]
    least, most = (f"{row['loss']} {interval(row, 'mean')}" for _, row in ends.iterrows())
    return f"from {started:.2f} after SFT to between {least} and {most}"


# ---------------------------------------------------------------- speed


def speed(name: str) -> str:
    found = table("bench", "bench").query("quantity == @name")["value"]
    times = " times" if name.startswith("ratio") else ""
    return f"{found.median():.2f}{times} | {span(found)}"


SPEEDS = (
    "ratio_vs_trl_pairs",
    "ratio_vs_trl_default_pairs",
    "peak_memory_ratio_vs_trl",
    "dora_over_erm",
    "gamma_over_base",
)
CLAIMS |= {name: lambda name=name: speed(name) for name in SPEEDS}


CLAIMS |= {
    "trl_pairs_in_words": lambda: speed("ratio_vs_trl_pairs").replace(" | ", ", "),
    "trl_memory_in_words": lambda: speed("peak_memory_ratio_vs_trl").replace(" | ", " of it, "),
}


@claim
def own_times() -> str:
    """Milliseconds of the objectives alone, beside the seconds of a step."""
    found = table("bench", "bench").groupby("quantity")["value"].median()
    own = [f"{found[f'{name}_own_ms']:.2f} ms" for name in ("dora_over_erm", "gamma_over_base")]
    return f"DoRA itself takes {own[0]} and gamma-SimPO {own[1]}"


def layouts(quantile: float) -> str:
    """Separate over shared rows, at a quantile of the prompt's share of a row's tokens."""
    found = table("layouts", "bench").query("quantile == @quantile")["ratio"]
    return f"{found.median():.2f} times | {span(found)}"


QUANTILES = {"layouts_middle": 0.5, "layouts_upper": 0.75}
CLAIMS |= {name: lambda quantile=q: layouts(quantile) for name, q in QUANTILES.items()}


def sampled(threads: int) -> pd.DataFrame:
    """Processes of the sampling bench, [work, alternation]."""
    found = table("sampling", "bench").query("threads == @threads").copy()
    found["cpu"] = found["user_s"] + found["system_s"]
    return found.set_index(["work", "alternation"])


def beside_generate(threads: int, quantity: str) -> "pd.Series":
    """The kit's value over that of `generate`, turn by turn."""
    found = sampled(threads)[quantity]
    return found["kit"] / found["transformers"]


@claim
def sampling_cpu() -> str:
    found = 1 / beside_generate(1, "cpu")
    return f"{found.median():.2f} times | {span(found)}"


@claim
def sampling_replies() -> str:
    found = beside_generate(2, "replies_per_second")
    return f"{found.median():.2f} times | {span(found)}"


@claim
def sampling_memory() -> str:
    found = beside_generate(1, "peak_mb")
    return f"{found.median():.2f} | {span(found)}"


def system_share(work: str) -> str:
    found = sampled(1).loc[work]
    share = 100 * found["system_s"] / found["cpu"]
    return f"{share.median():.1f} % | {share.min():.1f} to {share.max():.1f}"


SHARES = {"system_generate": "transformers", "system_kit": "kit", "system_training": "training"}
CLAIMS |= {name: lambda work=work: system_share(work) for name, work in SHARES.items()}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/claims.py --write")
    write()
