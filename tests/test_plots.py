"""Figures: each, drawn of its committed table, says what it shows and can be read."""

import json
import re

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pictures import FAR, distance, faults

from robustpo_kit import analysis, paths, plots
from robustpo_kit.bench import report
from robustpo_kit.errors import KitError

FOLDER = paths.FIGURES / "reference"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", plots.FIGURES)
def test_a_figure_can_be_read_and_looks_as_committed(name):
    figure = plots.draw(name, plots.read(FOLDER / f"{name}.csv"))
    assert distance(figure, FOLDER / f"{name}.png") < FAR  # before a draw of another resolution
    assert faults(figure) == []
    assert (FOLDER / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_every_figure_of_a_notebook_is_drawn_here():
    texts = "".join(path.read_text() for path in (paths.NOTEBOOKS / "text").glob("*.py"))
    assert set(re.findall(r'save_figure\("(\w+)"', texts)) == set(plots.FIGURES)
    assert set(re.findall(r'plots\.draw\("(\w+)"', texts)) == set(plots.FIGURES)
    assert {path.stem for path in FOLDER.glob("*.csv")} == set(plots.FIGURES)


@pytest.mark.parametrize("name", plots.SCHEMATICS)
def test_a_schematic_has_every_box_apart_from_the_others(name):
    figure = plots.schematic(name)
    figure.canvas.draw()
    axes = figure.axes[0]
    title, boxes, arrows = plots.SCHEMATICS[name]
    written = [text for text in axes.texts if text.get_text()]
    frames = {text.get_text(): text.get_bbox_patch().get_window_extent() for text in written}
    places = [frames[box.text] for box in boxes.values()]
    assert not any(a.overlaps(b) for k, a in enumerate(places) for b in places[:k])
    assert all(figure.bbox.containsx(x) for place in places for x in (place.x0, place.x1))
    assert set(boxes) == {end for arrow in arrows for end in arrow}
    assert axes.get_title() == title
    with pytest.raises(KitError, match="'dpo' is none of dora, gamma_po"):
        plots.schematic("dpo")


def healthy() -> tuple[Figure, plt.Axes]:
    figure, ax = plots.canvas()
    ax.plot([0, 1], [0, 1], label="line")
    ax.set(xlabel="x (m)", ylabel="y (s)")
    ax.legend()
    plots.head(figure, "It rises", "n = 2 points, 1 seed")
    return figure, ax


def covered(figure, ax):
    ax.text(0.5, 0.5, "one")
    ax.text(0.51, 0.5, "other")


def beyond_the_page(figure, ax):
    figure.text(0.97, 0.5, "longer than the page")


def beyond_the_axis(figure, ax):
    ax.text(0.95, 0.7, "cut at the frame", clip_on=True)


def without_words(figure, ax):
    ax.legend([ax.lines[0]], [" "])


def without_marks(figure, ax):
    ax.lines[0].set(linestyle="None", marker="None")
    ax.legend()


def without_entries(figure, ax):
    ax.legend([], [])


def without_n(figure, ax):
    figure.supxlabel("2 points, 1 seed")


def without_seeds(figure, ax):
    figure.supxlabel("n = 2 points")


def without_finding(figure, ax):
    figure.suptitle("")


def in_small_print(figure, ax):
    ax.set_xlabel("x (m)", size=6)


PLANTED = {
    covered: "overlap",
    beyond_the_page: "clipped",
    beyond_the_axis: "clipped",
    without_words: "empty legend",
    without_marks: "empty legend",
    without_entries: "empty legend",
    without_n: "no n",
    without_seeds: "no seeds",
    without_finding: "no finding",
    in_small_print: "small",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant):
    with plots.styled():
        figure, ax = healthy()
        assert faults(figure) == []
        plant(figure, ax)
        assert [fault.split(":")[0] for fault in faults(figure)] == [PLANTED[plant]]


def one_value_moved(table):
    row = table["score"].idxmax()
    table.loc[row, ["score", "score_low", "score_high"]] += 0.1


def one_method_renamed(table):
    table["policy"] = table["policy"].replace("rrhf dora", "another")


def ties_gone(table):
    table["tie"] = 0.0


@pytest.mark.parametrize("change", [one_value_moved, one_method_renamed, ties_gone])
def test_a_planted_change_is_seen(change):
    """FAR is not so far that a moved point, another word or a missing band would pass."""
    table = plots.read(FOLDER / "dora_win_rates.csv")
    before = plots.draw("dora_win_rates", table)
    change(table)
    assert distance(plots.draw("dora_win_rates", table), before) > 2 * FAR


def test_a_title_says_what_the_table_shows():
    table = plots.read(FOLDER / "dora_differences.csv")
    assert plots.draw("dora_differences", table).get_suptitle().startswith("None of 5")
    for column, value in {"score": 0.2, "score_low": 0.15, "score_high": 0.25}.items():
        table.loc[0, column] = value
    title = plots.draw("dora_differences", table).get_suptitle()
    assert title.startswith("1 of 5") and "DPO-PL DRO" in title and "+0.20" in title


def test_an_interval_that_holds_alone_may_not_hold_among_all():
    alone = pd.DataFrame({"difference": [0.1], "low": [0.002], "high": [0.198], "n": 30})
    assert plots.contrasts(pd.Series(["a"]), alone, "b").startswith("1 of 1")
    many = pd.concat([alone] * 10, ignore_index=True)
    assert plots.contrasts(pd.Series(list("abcdefghij")), many, "b").startswith("None of 10")


def test_a_figure_tells_whose_table_it_draws():
    table = plots.read(FOLDER / "gamma_win_rates.csv")
    for origin, badges in (("live: demo, seed 3", 1), ("record: cpu, seed 0", 0)):
        table.attrs["origin"] = origin
        figure = plots.draw("gamma_win_rates", table)
        assert origin in figure.get_supxlabel()
        assert sum(text.get_text() == origin for text in figure.texts) == badges
        # a badge stands above the figure's edge, where a tight box takes it along
        assert faults(figure) == [f"clipped: {origin!r}"] * badges


def test_steps_of_several_seeds_become_their_mean_and_band():
    table = pd.read_csv(FOLDER / "dora_curves.csv")
    seeds = [
        table.assign(seed=s, loss_mean=table["loss_mean"] + 0.01 * s * (table["policy"] == "dro"))
        for s in range(3)
    ]
    figure = plots.draw("dora_curves", pd.concat(seeds))
    assert "3 seeds" in figure.get_supxlabel()
    assert len(figure.axes[0].collections) == 3 and faults(figure) == []


def test_before_training_and_held_out_pairs_stand_beside():
    table = analysis.training_gaps(pd.read_csv(FOLDER / "margin_violin.csv"))
    table = pd.concat([table[table["policy"] == "simpo"].assign(policy="sft"), table])
    other = table.assign(gap=table["gap"] - 50)
    table = pd.concat([table.assign(pairs="training"), other.assign(pairs="held out")])
    table.attrs["origin"] = "yours: cpu, seed 3"
    figure = plots.draw("margin_violin", table)
    assert figure.axes[0].get_xticklabels()[0].get_text() == "before (SFT)"
    title = figure.get_suptitle().replace("\n", " ")
    assert "on training pairs" in title and "on held out pairs" in title and "before" in title
    assert len(figure.axes[0].collections) == 2 * table["policy"].nunique()
    assert faults(figure) == []


def test_bands_of_a_regression_hold_its_line_and_widen_away_from_the_mean():
    rng = np.random.default_rng(0)
    r = rng.random(400)
    table = pd.DataFrame({"policy": "erm", "prompt_id": np.arange(400) // 2, "reward": r})
    table["confidence"] = 0.2 + 0.5 * r + rng.normal(0, 0.1, 400)
    band = analysis.confidence_bands(table)
    fit = analysis.reward_confidence(table).iloc[0]
    assert np.allclose(band["confidence"], fit["intercept"] + fit["slope"] * band["reward"])
    width = band["high"] - band["low"]
    assert (
        width.iloc[len(band) // 2] < width.iloc[0] and width.iloc[len(band) // 2] < width.iloc[-1]
    )
    covers = (band["low"] < 0.2 + 0.5 * band["reward"]) & (
        0.2 + 0.5 * band["reward"] < band["high"]
    )
    assert covers.all()


def test_the_same_figure_has_the_same_bytes(tmp_path):
    (tmp_path / "toy_h_rank.csv").write_bytes((FOLDER / "toy_h_rank.csv").read_bytes())
    files = []
    for _ in range(2):
        assert [name.split("/")[-1] for name in plots.redraw(tmp_path)] == ["toy_h_rank.png"]
        files.append([(tmp_path / f"toy_h_rank.{end}").read_bytes() for end in ("png", "pdf")])
    assert files[0] == files[1]


def test_the_benchmark_draws_its_committed_results():
    results = json.loads((paths.RESULTS / "bench" / "bench.json").read_text())
    assert faults(report.figure(results)) == []


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [("nothing", pd.DataFrame({"a": [1]}), "unknown"), ("toy_h", pd.DataFrame({"a": [1]}), "no '")],
)
def test_draw_refuses(name, table, said):
    with pytest.raises(KitError, match=said):
        plots.draw(name, table)


def test_names_at_line_ends_keep_their_distance():
    with plots.styled():
        figure, ax = plots.canvas()
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="x", ylabel="y")
        plots.name_lines(ax, {name: (1.0, 0.5 + 0.01 * k, "k") for k, name in enumerate("abcd")})
        plots.head(figure, "Four lines", "n = 4, 1 seed")
        assert faults(figure) == []
    order = sorted(ax.texts, key=lambda text: text.xyann[1])
    assert [text.get_text() for text in order] == ["a", "b", "c", "d"]
