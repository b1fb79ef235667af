"""data/paper: the papers' numbers are all there, and add up where the papers say how."""

import itertools
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from robustpo_kit import published
from robustpo_kit.analysis import paper_values, papers
from robustpo_kit.errors import KitError

VALUES = paper_values()
README = (papers.FOLDER / "README.md").read_text(encoding="utf-8")
# Rows times columns of each table, or of its parts.
PRINTED = {
    ("dora", "Table 1"): 4 * 2 * 4,  # methods, models, win and lose each with its +-
    ("dora", "Table 2"): 6 * 4 * 2,  # methods, two tasks on two models, win and lose
    ("dora", "Table 3"): 6 * 4,
    ("dora", "Table 4"): 9 * 2,
    ("dora", "Table 5"): 6 * 5,
    ("dora", "Table 6"): 6 * 3,
    ("dora", "Table 7"): 4 * 1,
    ("dora", "Table 8"): 9 + 3 + 3,  # tasks
    ("dora", "Table 10"): 6 * 2,
    ("dora", "Figure 4"): 2,
    ("dora", "Figure 5"): 2,
    ("gamma_po", "Table 2"): 4 * (11 * 7 + 4),  # models, methods, columns; improvements
    ("gamma_po", "Table 3"): 4 * 8 * 8,  # models, methods, columns with changes and rank
    ("gamma_po", "Table 4"): 2 * 4 * 8,  # rates, methods, columns
    ("gamma_po", "Table 5"): 4 * 4 * 2 + 4 * 2 + 4 + 2,  # GPUs and times; changes; the last line
    ("gamma_po", "Table 6"): 3 + 4 + 4 + 5 + 4 + 7 + 6 + 7 + 9,  # methods
    ("gamma_po", "Table 7"): 4 * 4,
    ("gamma_po", "Table 10"): 11 * 6 + 5,  # methods; improvements
}
UNREAD = {
    ("gamma_po", "Table 3"): 2 * 3 * 8,
    ("gamma_po", "Table 4"): 2,
    ("gamma_po", "Table 10"): 1,
}
ITEMS = {"dora": {"Table": 10, "Figure": 7}, "gamma_po": {"Table": 10, "Figure": 6}}
LC, WR = "AlpacaEval 2 LC win rate, %", "AlpacaEval 2 win rate, %"
HARD, MEAN = "Arena-Hard win rate, %", "average, %"
GAMMA_MODELS = [
    "Llama3-Instruct (8B)", "Mistral-Instruct (7B)",
    "Gemma2-Instruct (9B)", "Qwen2.5-Instruct (7B)",
]  # fmt: skip
LLAMA, MISTRAL, GEMMA, QWEN = GAMMA_MODELS
ROUNDING = 0.05 + 1e-9  # of one printed decimal


def printed(paper: str, table: str):
    """A table as a frame: its rows by its columns, NaN where nothing is printed or read."""
    part = VALUES[(VALUES["paper"] == paper) & (VALUES["table"] == table)]
    return part.pivot(index="row", columns="column", values="value")


def of_model(paper: str, table: str, model: str):
    """The rows of one model (or flip rate) without its name."""
    frame = printed(paper, table)
    frame = frame[frame.index.str.startswith(f"{model} / ")]
    return frame.rename(index=lambda row: row.rpartition(" / ")[2])


# ---------------------------------------------------------------- counts


def test_readme_has_every_table_and_figure_and_counts_what_is_there():
    lines = re.findall(r"^\| (\w+) \| (\w+ \d+) \| (.*) \| (\d+) \| (\d+) \|$", README, re.M)
    named = [line[:2] for line in lines]
    wanted = []
    for paper, kinds in ITEMS.items():
        for kind, count in kinds.items():
            wanted += [(paper, f"{kind} {number}") for number in range(1, count + 1)]
    assert named == wanted and len(wanted) == 20 + 13
    there = VALUES.groupby(["paper", "table"]).size().to_dict()
    for paper, item, what, whole, here in lines:
        assert int(whole) == PRINTED.get((paper, item), 0), (paper, item)
        assert int(here) == there.get((paper, item), 0), (paper, item)
        assert int(whole) - int(here) == UNREAD.get((paper, item), 0), (paper, item)
        assert ("no numbers" in what) is (whole == "0"), (paper, item)
    assert set(there) <= set(wanted)


def test_no_number_stands_twice_and_all_are_in_range():
    assert not VALUES.duplicated(["paper", "table", "row", "column"]).any()
    share = VALUES["column"].str.fullmatch(
        r".*(win rate.*|win|lose|average|accuracy|iteration \d), %"
    )
    share &= ~VALUES["column"].str.contains("improvement")
    assert share.sum() == 32 // 2 + 48 + 6 * 3 + 18 + 30 + 18 + 4 + 12 + 176 + 104 + 31
    assert VALUES.loc[share, "value"].between(0, 100).all()
    assert VALUES.loc[VALUES["column"].str.contains("MT-Bench score"), "value"].between(1, 10).all()


def test_every_model_has_its_methods():
    for model in GAMMA_MODELS:
        assert len(of_model("gamma_po", "Table 2", model)) == 11 + 1
        torn = model in (GEMMA, QWEN)
        assert len(of_model("gamma_po", "Table 3", model)) == 8 - 3 * torn


def test_errors_and_intervals_have_the_size_of_their_samples():
    """AlpacaEval 2 has 805 prompts, with verdicts between win and loss; Arena-Hard has 500."""
    frame = printed("gamma_po", "Table 2").dropna(subset=MEAN)
    rate, error = frame[WR], frame["AlpacaEval 2 standard error, points"]
    assert (error / (rate * (100 - rate) / 805) ** 0.5).between(0.8, 1).all()
    low, high = (
        frame[f"Arena-Hard 95 % interval, {end} offset, points"] for end in ("lower", "upper")
    )
    assert low.between(-4.5, -1).all() and high.between(1, 4.5).all()


# ---------------------------------------------------------------- averages, changes, ranks


@pytest.mark.parametrize("table", ["Table 2", "Table 3", "Table 4"])
def test_averages_are_means_of_their_columns(table):
    frame = printed("gamma_po", table)
    frame = frame[frame[[LC, WR, HARD]].notna().all(axis=1)]
    assert len(frame) == {"Table 2": 44, "Table 3": 26, "Table 4": 7}[table]
    assert ((frame[[LC, WR, HARD]].mean(axis=1) - frame[MEAN]).abs() <= ROUNDING).all()


def test_mt_bench_averages_are_means_of_the_models():
    frame = printed("gamma_po", "Table 10").dropna(subset=["average, rank"])
    scores = frame[[f"{model}, MT-Bench score" for model in GAMMA_MODELS]]
    whole = scores.notna().all(axis=1)
    assert list(frame.index[~whole]) == ["SimPO"]
    gap = (scores.mean(axis=1) - frame["average"])[whole]
    assert (gap.abs() <= 0.005 + 1e-9).all()


def groups_of_ranks():
    for model in GAMMA_MODELS:
        yield of_model("gamma_po", "Table 3", model), MEAN
    for rate in (0.1, 0.2):
        yield of_model("gamma_po", "Table 4", f"{MISTRAL} / label flip rate {rate}"), MEAN
    yield printed("gamma_po", "Table 10").dropna(subset=["average, rank"]), "average"


def test_ranks_are_those_of_the_averages():
    """Among the rows read; of Tables 3 and 4 among DPO's methods and SimPO's apart."""
    pairs = 0
    for frame, mean in groups_of_ranks():
        rows = [(name, row[mean], row["average, rank"]) for name, row in frame.iterrows()]
        for (one, high, better), (other, low, worse) in itertools.combinations(rows, 2):
            if mean == "average" or ("SimPO" in one) == ("SimPO" in other):
                assert (high > low) == (better < worse) and (high == low) == (better == worse)
                pairs += 1
    assert pairs == 2 * 12 + 2 * 6 + 2 * 6 + 55


@pytest.mark.parametrize("table", ["Table 3", "Table 4"])
def test_changes_are_differences_to_the_base(table):
    frame = printed("gamma_po", table)
    checked = 0
    for row, values in frame.iterrows():
        place, _, method = row.rpartition(" / ")
        base = frame.loc[f"{place} / {'SimPO' if 'SimPO' in method else 'DPO'}"]
        for column in (LC, WR, HARD):
            change = values[column.replace(", %", ", change to base, points")]
            if change == change:
                assert values[column] - base[column] == pytest.approx(change, abs=1e-6), (
                    row,
                    column,
                )
                checked += 1
    assert checked == {"Table 3": 26 * 3, "Table 4": 8 * 3 - 1}[table]


def test_training_times_add_up():
    frame = printed("gamma_po", "Table 5")
    times = frame["GPU time, A100 hours"].dropna()
    for method, base in (
        ("DPO",) * 2,
        ("gamma-DPO", "DPO"),
        ("SimPO",) * 2,
        ("gamma-SimPO", "SimPO"),
    ):
        hours = 0.0
        for model in GAMMA_MODELS:
            run, plain = frame.loc[f"{model} / {method}"], frame.loc[f"{model} / {base}"]
            hours += run["A100 GPUs"] * run["training time, minutes"] / 60
            change = run["training time, minutes"] - plain["training time, minutes"]
            assert method == base or change == run["training time, change to base, minutes"]
        assert abs(hours / 4 - times[f"average / {method}"]) <= 0.005
        if method != base:
            more = (times[f"average / {method}"] / times[f"average / {base}"] - 1) * 100
            assert (
                abs(more - frame.loc[f"average / {method}", "GPU time, change to base, %"])
                <= ROUNDING
            )


def improvements():
    """(place, improvement by the rows, as printed) over the best method that is not a gamma."""
    tables = [(of_model("gamma_po", "Table 2", model), model) for model in GAMMA_MODELS]
    for frame, place in [*tables, (printed("gamma_po", "Table 10"), "MT-Bench")]:
        said = frame.loc["Improve"].dropna()
        own = frame.index.str.startswith("gamma-")
        for column, value in said.items():
            name = column.removesuffix(", relative improvement, %")
            score = next(c for c in (f"{name}, %", f"{name}, MT-Bench score", name) if c in frame)
            best = frame.loc[~own, score].max()
            yield f"{place}: {name}", (frame.loc[own, score].max() / best - 1) * 100, value


def test_improvements_are_over_the_best_other_method():
    """Two are exchanged: Llama3's of Arena-Hard and of the average."""
    found = {place: (real, said) for place, real, said in improvements()}
    wrong = {place: pair for place, pair in found.items() if abs(pair[0] - pair[1]) > ROUNDING}
    assert len(found) == 16 + 5
    hard, mean = f"{LLAMA}: Arena-Hard win rate", f"{LLAMA}: average"
    assert set(wrong) == {hard, mean}
    assert abs(wrong[hard][0] - wrong[mean][1]) <= ROUNDING
    assert abs(wrong[mean][0] - wrong[hard][1]) <= ROUNDING
    single = [place for place in found if "average" not in place and "MT-Bench" not in place]
    assert round(sum(found[place][0] for place in single) / 12, 1) == 4.4  # the abstract's
    assert round(sum(found[place][1] for place in single) / 12, 1) == 4.8


# ---------------------------------------------------------------- what the texts say


def test_gamma_po_says_these_differences():
    qwen, mistral = (of_model("gamma_po", "Table 2", model) for model in (QWEN, MISTRAL))
    ours = qwen.loc["gamma-SimPO"]
    others = qwen.drop(index=["gamma-SimPO", "Improve"]).max()
    assert (others[LC], ours[LC], others[WR], ours[WR]) == (34.1, 39.0, 33.3, 34.3)
    assert list(mistral.loc[["SimPO", "gamma-SimPO"], HARD]) == [20.7, 22.9]
    assert list((ours - qwen.loc["SimPO"])[[WR, HARD]]) == pytest.approx([6.1, 5.8])


def test_dora_s_tables_agree_with_each_other():
    """Table 4 has wins of Mistral-7B: its rows of DoRA are those of Table 2."""
    ablation, main = printed("dora", "Table 4"), printed("dora", "Table 2")["win, %"]
    for loss in ("DPO-PL", "RRHF", "LIRE"):
        for task, column in (("HH-RLHF", "HH"), ("Summarization", "Summarization")):
            row = f"Mistral-7B / {task} / {loss} + DoRA"
            assert ablation.loc[f"DoRA / {loss}", f"{column} win, %"] == main[row]


def test_win_and_lose_leave_the_rest_to_ties():
    ties = {table: 100 - printed("dora", table)[["win, %", "lose, %"]].sum(axis=1)
            for table in ("Table 1", "Table 2", "Table 10")}  # fmt: skip
    assert all((rest >= -1e-9).all() for rest in ties.values())
    odd = ties["Table 2"].pop("Llama-8B / Summarization / DPO-PL + DoRA")
    assert odd == pytest.approx(10.5) and ties["Table 2"].max() == pytest.approx(4.0)
    assert ties["Table 10"].min() > 30 and ties["Table 1"].max() < 4


def test_dora_s_rates_are_shares_of_400_queries_but_two():
    shares = {(Decimal(k) / 4).quantize(Decimal("0.1"), ROUND_HALF_UP) for k in range(401)}
    rates = VALUES[(VALUES["paper"] == "dora") & VALUES["column"].str.contains(
        r"^(?:HH-RLHF |HH |Summarization )?(?:win|lose)\b(?!, plus)|^iteration"
    ) & (VALUES["table"] != "Table 1")]  # fmt: skip
    assert len(rates) == 48 + 18 + 6 * 3 + 18 + 12
    off = rates[[Decimal(str(value)) not in shares for value in rates["value"]]]
    assert sorted(off["value"]) == [61.4, 67.7]
    assert set(off["table"]) == {"Table 5"} and set(off["row"]) == {"LIRE"}


@pytest.mark.parametrize(
    ("table", "worse"),
    [
        ("Table 2", {("Mistral-7B / Summarization / LIRE", "win, %"),
                     ("Mistral-7B / Summarization / LIRE", "lose, %")}),
        ("Table 3", {("DPO-PL", LC), ("DPO-PL", WR), ("DPO-PL", HARD)}),  # as the text says
        ("Table 5", set()),
        ("Table 6", set()),
    ],
)  # fmt: skip
def test_where_dora_is_not_better_than_its_baseline(table, worse):
    frame = printed("dora", table).drop(columns="AlpacaEval 2 length", errors="ignore")
    found = set()
    for row in frame.index[~frame.index.str.endswith("DoRA")]:
        gain = frame.loc[f"{row} + DoRA"] - frame.loc[row]
        gain[[column for column in gain.index if "lose" in column]] *= -1
        found |= {(row, column) for column in gain.index[gain <= 0]}
    assert found == worse


# ---------------------------------------------------------------- oddities


def test_oddity_rdpo_on_mistral_differs_between_tables_2_and_3():
    one, two = printed("gamma_po", "Table 2"), printed("gamma_po", "Table 3")
    rows, columns = one.index.intersection(two.index), [LC, WR, HARD, MEAN]
    apart = one.loc[rows, columns].compare(two.loc[rows, columns])
    assert apart.index.tolist() == [f"{MISTRAL} / rDPO"] and len(rows) == 5 * 2 + 4 * 2
    assert apart.iloc[0].tolist() == [16.3, 17.5, 20.3, 20.7]


def test_oddity_beta_dpo_has_one_arena_hard_for_two_models():
    columns = [
        column for column in printed("gamma_po", "Table 2") if column.startswith("Arena-Hard")
    ]
    rows = [
        of_model("gamma_po", "Table 2", model).loc["beta-DPO", columns] for model in (GEMMA, QWEN)
    ]
    assert rows[0].dropna().to_dict() == rows[1].dropna().to_dict()


def test_oddity_gamma_simpo_is_not_first_everywhere():
    beaten = {}
    for model in GAMMA_MODELS:
        frame = of_model("gamma_po", "Table 2", model).drop(index="Improve")
        for column in (LC, WR, HARD):
            others = frame[column].drop("gamma-SimPO")
            beaten[model, column] = (others >= frame.loc["gamma-SimPO", column]).sum()
    assert {place: n for place, n in beaten.items() if n} == {(GEMMA, WR): 3, (QWEN, HARD): 1}


def test_oddity_mt_bench_is_no_win_rate_and_not_won_on_all_models():
    frame = printed("gamma_po", "Table 10").drop(index="Improve")
    scores = frame[[column for column in frame if "MT-Bench" in column]]
    assert scores.max().max() == 9.3
    best = scores[~scores.index.str.startswith("gamma-")].max()
    behind = {
        name: set(scores.columns[scores.loc[name] < best]) for name in ("gamma-DPO", "gamma-SimPO")
    }
    assert behind["gamma-DPO"] == {f"{MISTRAL}, MT-Bench score"}
    assert behind["gamma-SimPO"] == {f"{GEMMA}, MT-Bench score"}


def test_oddity_dora_does_not_lose_least_on_mistral():
    lose = printed("dora", "Table 1")["lose, %"]
    least = {
        model: lose[lose.index.str.startswith(model)].idxmin()
        for model in ("Mistral-7B", "Llama-8B")
    }
    assert least["Mistral-7B"].endswith("Robust DPO") and least["Llama-8B"].endswith("DPO + DoRA")


def test_oddity_lire_is_not_monotone_in_corruption():
    frame = printed("dora", "Table 5")
    rates = frame[[f"HH-RLHF win rate at {percent} % corruption, %" for percent in (20, 40, 60)]]
    falls = rates.diff(axis=1).iloc[:, 1:].lt(0).all(axis=1)
    assert set(rates.index[~falls]) == {"LIRE", "LIRE + DoRA"}
    same = [f"AlpacaEval 2 {kind}win rate at 40 % corruption, %" for kind in ("LC ", "")]
    assert set(frame.index[frame[same[0]] == frame[same[1]]]) == {"DPO-PL", "DPO-PL + DoRA"}


def test_oddity_rso_is_not_behind_everywhere():
    frame = printed("dora", "Table 10")
    ahead = set()
    for loss in ("DPO-PL", "RRHF", "LIRE"):
        rso, dora = (frame.loc[f"HH-RLHF / {loss} / {method}"] for method in ("RSO", "DoRA"))
        ahead |= {(loss, "win")} if rso["win, %"] > dora["win, %"] else set()
        ahead |= {(loss, "lose")} if rso["lose, %"] < dora["lose, %"] else set()
    assert ahead == {("RRHF", "win"), ("RRHF", "lose"), ("DPO-PL", "lose")}


# ---------------------------------------------------------------- against the presets, and reading


def numbers(spec: str) -> list[float]:
    return sorted(float(value) for value in re.findall(r"=([\d.]+)", spec))


def test_presets_have_the_settings_of_print():
    """published.py was written from the papers too, by another hand."""
    kit = {"R-DPO": "r_dpo_length", "beta-DPO": "beta_dpo", "DPO-PL": "dpo_pl"}
    tasks = {"HH-RLHF": "hh", "Summarization": "summarization", "UltraFeedback": "ultrafeedback"}
    for row, values in printed("dora", "Table 8").iterrows():
        task, loss = row.split(" / ")
        name = f"dora/mistral-7b/{tasks[task]}/{kit.get(loss, loss.lower())}"
        assert numbers(published.PRESETS[name].spec) == sorted(values.dropna())
    for row, values in printed("gamma_po", "Table 6").iterrows():
        ranges = published.SEARCH_RANGES[kit.get(row, row.lower())].values()
        margin = values.index.str.startswith("gamma") & (row == "beta-DPO")  # its loss has none
        assert sorted(itertools.chain(*ranges)) == sorted(values[~margin].dropna())
    presets = [name for name in published.PRESETS if name.endswith("/gamma_simpo")]
    for name, model in zip(presets, GAMMA_MODELS, strict=True):
        preset, values = published.PRESETS[name], printed("gamma_po", "Table 7").loc[model]
        assert preset.settings["learning_rate"] == values.pop("learning rate")
        assert numbers(preset.spec) == sorted(values)


def test_a_paper_is_read_alone_or_with_the_other():
    assert len(paper_values("dora")) + len(paper_values("gamma_po")) == len(VALUES)
    assert set(paper_values("dora")["paper"]) == {"dora"} and VALUES["value"].dtype == float
    with pytest.raises(KitError, match=r"paper 'rso': unknown; choose from dora, gamma_po"):
        paper_values("rso")


@pytest.mark.parametrize(
    "line",
    ["dora,Table 1,a,b", "dora,Table 1,a,b,1,2", "dora,Table 1,a,b,many", "dora,Table 1,a,b,nan",
     "dora,Table 1,,b,1", "gamma_po,Table 1,a,b,1", ""],
)  # fmt: skip
def test_a_malformed_line_is_named(tmp_path: Path, monkeypatch, line):
    head = "paper,table,row,column,value"
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    with pytest.raises(KitError, match=r"dora\.csv: no such file"):
        paper_values("dora")
    (tmp_path / "dora.csv").write_text(f"{head}\ndora,Table 1,a,b,1\n{line}\n")
    with pytest.raises(KitError, match=r"dora\.csv, line 3: .*expected paper, table, row"):
        paper_values("dora")
    (tmp_path / "dora.csv").write_text("paper,table,row,value\n")
    with pytest.raises(KitError, match=r"dora\.csv, line 1: "):
        paper_values("dora")
