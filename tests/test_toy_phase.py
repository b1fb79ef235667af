"""Studies in the toy world: tuned first, run whole, resumed after a kill; paths and weights."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from robustpo_kit import analysis, experiments, paths, toy
from robustpo_kit.analysis import Study
from robustpo_kit.cli import main
from robustpo_kit.errors import KitError
from robustpo_kit.toy.runs import Run
from robustpo_kit.toy.setting import Setting, draw_data, start, weights

CHANGES = {
    "world": {"topics": 3, "tones": 2, "symbols": 4, "length": 3},
    "data": {"rows": 48},
    "sft_epochs": 2,
    "classifier_rows": 48,
    "classifier_epochs": 1,
    "classifier_steps": 4,
}
CONTRAST = {
    "contrast": ["slot", "erm"],
    "outcome": "gold",
    "where": {"dose": 0.5},
    "direction": "higher",
}
TRIES = {"learning_rate": [1e-3], "beta": [0.1, 1.0]}
SLOT = "reweight(dpo_pl(beta={beta}))"
ERM = {"spec": "dpo_pl(beta={beta})", "tries": TRIES}
DECLARED = {
    "name": "small",
    "question": "Does the slot weight help?",
    "primary": [CONTRAST],
    "seeds": [0, 1],
    "methods": {
        "erm": ERM,
        "slot": {"spec": SLOT, "h": "slot", "tries": TRIES, "against": ["erm"]},
        "mask": {
            "spec": SLOT,
            "h": "mask",
            "sft_h": "mask",
            "tuned_as": "slot",
            "against": ["erm"],
            "worlds": 1,
        },
    },
    "doses": [0.0, 0.5],
    "stopping": "all seeds",
    "settings": {
        "world": "toy",
        "harm": "contamination",
        "tuning_seeds": [10, 11],
        "tuning_doses": [0.5],
        "equal_kl": 0.01,
        "tie": {"gold": 0.1},
        "axes": {"K 2": {"data": {"responses": 2}, "world": {"quality": [0.5], "style": [1.0]}}},
        "axis_methods": ["erm", "slot"],
        "axis_doses": [0.5],
        "axis_worlds": 2,
        "setting": CHANGES,
    },
}


def small(**changes) -> Setting:
    """The world of seed 0 in DECLARED, with other knobs of its data."""
    setting = toy.declared.read(study_of(DECLARED)).setting(0, 0.5)
    return dataclasses.replace(setting, data=dataclasses.replace(setting.data, **changes))


def study_of(declared) -> Study:
    return Study.parse(declared, paths.STUDIES / "small.json")


# ---------------------------------------------------------------- the study from end to end


def test_a_study_is_tuned_then_run_and_goes_on_after_a_kill(declare, capsys):
    name = declare()
    assert main(["study", name, "--workers", "1"]) == 2
    assert "tuned.csv: missing" in capsys.readouterr().err
    assert main(["study", name, "--tune", "--workers", "1"]) == 0
    folder = paths.RESULTS / "studies" / name
    tuned = pd.read_csv(folder / "tuned.csv")
    assert len(tuned) == 2 * 2 and (tuned["worlds"] == 2).all()
    best = tuned.loc[tuned.groupby("method")["gold"].idxmax()]
    assert tuned[tuned["chosen"]].equals(best) and len(best) == 2

    assert main(["study", name, "--limit", "3", "--workers", "1"]) == 0
    assert "11 runs left" in capsys.readouterr().out
    kept = paths.RUNS / "studies" / "small.jsonl"
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join([*lines[:2], lines[2][:40]]))  # killed in the midst of a line
    assert experiments.run_study(name, workers=1) == 0
    assert kept.read_text().splitlines()[:2] == lines[:2], "what had finished is not run again"

    outcomes, cells = (pd.read_csv(folder / f"{table}.csv") for table in ("outcomes", "cells"))
    assert len(outcomes) == 14 * 9 + 6 * 7, "every run, and every world before it"
    start = outcomes.query("method == 'SFT' and outcome == 'kl_reference'")["value"]
    assert len(start) == 6 and (start == 0).all()
    assert (outcomes.groupby(["axis", "dose", "method", "outcome"]).size() <= 2).all()
    assert outcomes.groupby("method")["seed"].nunique().to_dict() == {
        "erm": 2,
        "slot": 2,
        "mask": 1,
        "SFT": 2,
    }
    assert set(cells["axis"]) == {"base", "K 2"} and set(cells["verdict"]) <= {
        "win",
        "tie",
        "lose",
        "open",
    }
    contrasts = pd.read_csv(folder / "contrasts.csv")
    assert contrasts["kind"][0] == "primary" and contrasts["seeds"][0] == 2
    assert "mask" not in set(contrasts["method"]), "it has fewer worlds than a band's others"


def test_runs_of_the_primary_contrasts_come_first():
    declared = toy.declared.read(study_of(DECLARED))
    cells = toy.phase.study_cells(declared, chosen(declared))
    assert [cell.dose for cell in cells[:5]] == [0.5] * 5
    assert [cell.axis for cell in cells[-4:]] == ["K 2"] * 4
    assert cells[-1].run.setting.world.quality == (0.5,)
    assert {cell.run.objective for cell in cells if cell.method == "mask"} == {
        "reweight(dpo_pl(beta=1.0))"
    }


def test_a_choice_at_an_end_of_its_grid_is_named():
    settings = ({"rate": rate, "beta": beta, "tau": 1} for rate in (1, 2, 3) for beta in (0.1, 1.0))
    rows = [{"method": "a", "dose": 0.5, "knobs": json.dumps(knobs)} for knobs in settings]
    tuned = pd.DataFrame(rows)
    found = {
        rate: analysis.chosen_tries(tuned.assign(chosen=tuned.index == 2 * rate - 2)).iloc[0]
        for rate in (1, 2, 3)
    }
    ends = {rate: row["at_end"] for rate, row in found.items()}
    assert ends == {1: "rate, beta", 2: "beta", 3: "rate, beta"}  # of two values each is an end
    knobs = {"rate": 2, "beta": 0.1, "tau": 1}
    assert json.loads(found[2]["knobs"]) == knobs and "chosen" not in found[2]


def chosen(declared, best=1):
    """A tuned table in which the try number `best` of every method won."""
    rows = []
    for name, method in declared.methods.items():
        for number, knobs in enumerate(method.knobs()):
            for dose in declared.settings.tuning_doses:
                row = {"method": name, "dose": dose, "knobs": json.dumps(knobs), "gold": 0.0}
                rows.append(row | {"chosen": number == best})
    return pd.DataFrame(rows)


def test_a_dose_takes_what_was_chosen_at_the_nearest():
    settings = DECLARED["settings"] | {"tuning_doses": [0.0, 0.5]}
    declared = toy.declared.read(study_of(DECLARED | {"settings": settings, "doses": [0.2, 0.5]}))
    tuned = chosen(declared)
    tuned["chosen"] ^= tuned["dose"] == 0.0
    runs = {cell.dose: cell.knobs for cell in toy.phase.study_cells(declared, tuned)}
    assert (runs[0.2]["beta"], runs[0.5]["beta"]) == (0.1, 1.0)


@pytest.mark.parametrize("spoil", ["a try is missing", "nothing is chosen"])
def test_a_tuned_table_of_another_declaration_is_refused(spoil):
    declared = toy.declared.read(study_of(DECLARED))
    tuned = chosen(declared)
    tuned = tuned[1:] if spoil == "a try is missing" else tuned.assign(chosen=False)
    with pytest.raises(KitError, match="small: tuned.csv has not the 2 tries of 'erm' at dose 0.5"):
        toy.phase.study_cells(declared, tuned)


def test_further_outcomes_are_those_that_a_study_names():
    further = {"further": ["lose", "golden_logp"]}
    points = {name: [0.0, 0.5] for name in (*toy.declared.MEASURES, "lose")}
    points["kl_from_golden"] = [3.0, 3.7]
    for settings in ({}, further):
        changed = {"settings": DECLARED["settings"] | settings}
        declared = toy.declared.read(study_of(DECLARED | changed))
        cells = toy.phase.study_cells(declared, chosen(declared))
        results = pd.DataFrame([{"path": points, "ess": 8.0}] * len(cells))
        made = toy.phase.result_tables(declared, cells, results)["outcomes"]
        found = made[made["method"] == "erm"].groupby("outcome")["value"].first()
        assert set(found.index) == {*toy.declared.OUTCOMES, "ess", *settings.get("further", ())}
    assert found["lose"] == 0.5 and found["golden_logp"] == pytest.approx(-0.7)


def test_golden_logp_is_what_golden_replies_gained():
    """By the log-probabilities themselves: E over golden replies of log pi, before and after."""
    setting = small()
    first = start(setting)
    world = first.world
    run = Run("dpo_pl(beta=0.1)", setting=setting, learning_rate=1e-2)
    policy = toy.runs._copy(first.policy)
    toy.runs._train(run, policy)
    after = toy.runs.policy_logps(policy, world)
    golden, rows = world.log_density[0].exp(), world.held_out_prompts
    before, later = (
        (golden * (each.logps + each.mass.log()[:, None])).sum(-1)[rows].mean()
        for each in (first.distribution, after)
    )
    path = toy.runs.path(run)["path"]["kl_from_golden"]
    assert path[0] - path[-1] == pytest.approx(float(later - before), abs=1e-5)
    assert abs(path[0] - path[-1]) > 0.01


def test_dro_in_a_window_of_one_prompt_is_the_plain_mean():
    def gold(spec, **window):
        run = Run(spec, setting=small(), learning_rate=5e-3, **window)
        return toy.runs.path(run)["path"]["gold"][-1]

    plain, whole = gold("dpo_pl(beta=1.0)"), gold("dro(dpo_pl(beta=1.0), lam=0.5)")
    assert gold("dro(dpo_pl(beta=1.0), lam=0.5)", window=1) == pytest.approx(plain, abs=1e-4)
    assert abs(whole - plain) > 1e-2
    assert gold("dro(dpo_pl(beta=1.0), lam=0.5)", window=32) == whole


def settings(**changes):
    return {"settings": DECLARED["settings"] | changes}


def methods(name="slot", **changes):
    return {"methods": DECLARED["methods"] | {name: DECLARED["methods"][name] | changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (settings(harm="rain"), "settings.harm: 'rain' is none of contamination, label_noise"),
        (settings(colour=1), "settings: .*'colour'"),
        (settings(tuning_seeds=[1]), "tuning_seeds: seed 1 is one of the study's"),
        (settings(tuning_doses=[]), "settings.tuning_doses: needs a value at least"),
        ({"methods": {"erm": ERM, "slot": ERM}}, "methods: one at least needs `against`"),
        (settings(axis_methods=["dora"]), "settings.axis_methods: 'dora' is none of the methods"),
        (settings(tie={"luck": 1}), "outcome: 'luck' is none of gold, win_rate"),
        (settings(further=["luck"]), "settings.further: 'luck' is none of win, lose"),
        (settings(tie={"lose": 1}), "outcome: 'lose' is none of gold, win_rate"),
        (settings(axes={"K 0": {"data": {"responses": 0}}}), "axis 'K 0': rows >= 1 and resp"),
        (settings(axes={"K": {"dat": {"responses": 2}}}), "axis 'K': .*'dat'"),
        ({"doses": [0.5, 2.0]}, "dose 2, axis 'base': contamination must lie in"),
        ({"primary": [CONTRAST | {"outcome": "luck"}]}, "outcome: 'luck' is none of"),
        ({"primary": [CONTRAST | {"where": {}}]}, "slot minus erm: where should name a dose"),
        (
            {"primary": [CONTRAST | {"contrast": ["mask", "erm"]}]},
            "mask minus erm: 'mask' should have all worlds",
        ),
        (methods(against=["dora"]), "method 'slot', against: 'dora' is none of the methods"),
        (methods(tries={}), "method 'slot': needs tries, or else tuned_as"),
        (methods(tries=TRIES | {"beta": [1.0]}), "'slot': has 1 tries, another has 2"),
        (methods(tries={"learning_rate": [1, 2]}), "method 'slot': tries lack the knob 'beta'"),
        (methods("mask", tuned_as="x"), "method 'mask', tuned_as: 'x' is none of the methods"),
        ({"methods": methods()["methods"] | {"SFT": ERM}}, "methods: 'SFT' names where all begin"),
        (methods(h="guess"), "method 'slot': h = 'guess'"),
        (methods(spec="dqo(beta={beta})"), "method 'slot': dqo"),
        (methods(window=33), "method 'slot': window = 33: 1 to 32 prompts are expected"),
        (methods(color="red"), "method 'slot': .*'color'"),
    ],
)
def test_a_declaration_that_cannot_run_is_one_line(changes, message):
    with pytest.raises(KitError, match=f"study small, .*{message}"):
        toy.declared.read(study_of(DECLARED | changes))


def test_a_study_on_real_text_has_nothing_to_tune(declare):
    declare(settings={"profile": "smoke"})
    with pytest.raises(KitError, match="study small: nothing to tune"):
        experiments.run_study("small", tune=True)


# ---------------------------------------------------------------- paths and weights


def test_a_path_begins_at_the_start_and_ends_where_the_run_does():
    run = Run("dpo_pl(beta=0.1)", setting=small(), epochs=2, points=3)
    whole, path = toy.runs.run(run), toy.runs.path(run)["path"]
    assert {len(values) for values in path.values()} == {4} and path["kl_reference"][0] == 0
    for name in ("gold", "win_rate", "mass"):
        assert path[name][0] == pytest.approx(whole[f"sft_{name}"], abs=1e-5)
        assert path[name][-1] == pytest.approx(whole[name], abs=1e-5)


def test_gold_at_a_divergence_is_read_off_the_path():
    path = {"kl_reference": [0.0, 0.2, 0.8, 0.6, 1.0], "gold": [0.0, 1.0, 4.0, 9.0, 9.0]}
    assert toy.phase.at_divergence(path, 0.5) == pytest.approx(1 + 3 * 0.3 / 0.6)
    assert toy.phase.at_divergence(path, 0.2) == 1.0
    assert np.isnan(toy.phase.at_divergence(path, 1.5))


def test_weights_are_what_their_formulas_say():
    setting = small(contamination=0.5)
    assert (weights(setting, "ones") == 1).all()
    c = toy.setting.estimate(setting).probs[:, 0].numpy()  # the golden slot of a list
    ratios = 3 * c / (1 - c)
    share = 0.5
    for _ in range(5000):  # Saerens et al. 2002
        share = (share * ratios / (share * ratios + 1 - share)).mean()
    expected = 1 / (share + (1 - share) / ratios)
    np.testing.assert_allclose(weights(setting, "slot").numpy(), expected, rtol=1e-4)


def test_the_exact_slot_weight_of_two_sources_by_hand():
    """K = 2: a contaminated slot holds the better liked of two draws from the one source."""
    declared = toy.declared.read(study_of(DECLARED))
    setting = declared.setting(0, 0.5, "K 2")
    world, data, _ = draw_data(setting)
    golden, other = world.log_density.exp()
    liked = world.biased_reward(setting.data.contamination_bias)
    expected = []
    for prompt, slot in zip(data.prompt_ids, data.response_ids[:, 0], strict=True):
        below = other[prompt][liked[prompt] < liked[prompt, slot]].sum()
        favourite = other[prompt, slot] * (2 * below + other[prompt, slot])
        expected.append(1 / (0.5 + 0.5 * favourite / golden[prompt, slot]))
    np.testing.assert_allclose(weights(setting, "slot_oracle").numpy(), expected, rtol=1e-9)


def test_sft_by_a_mask_does_not_see_what_contaminated_rows_hold():
    """Another bias of their reward puts other replies into their golden slots, and no others."""
    settings = [small(contamination=0.5, contamination_bias=bias) for bias in (2.0, -2.0)]
    masked = [start(setting, "mask").distribution.logps for setting in settings]
    plain = [start(setting).distribution.logps for setting in settings]
    assert torch.equal(*masked) and not torch.equal(*plain)
    with pytest.raises(ValueError, match="sft_h = 'guess'"):
        Run(sft_h="guess")


def test_the_held_out_world_has_its_own_truth():
    world = toy.world.build(dataclasses.replace(small().world, held_out=0.5))
    part, rows = toy.world.held_out(world), world.held_out_prompts
    assert part.prompts == tuple(world.prompts[row] for row in rows.tolist())
    assert torch.equal(part.reward, world.reward[rows]) and not len(part.train_prompts)
    every = toy.truth.Enumeration(world.log_density[1], torch.ones(len(world.prompts)))
    some = toy.truth.Enumeration(part.log_density[1], torch.ones(len(rows)))
    assert toy.truth.evaluate(part, some, part.held_out_prompts) == pytest.approx(
        toy.truth.evaluate(world, every, rows)
    )


# ---------------------------------------------------------------- win, tie, lose

EFFECTS = {"erm": 0.0, "better": 0.5, "same": 0.0, "worse": -0.5, "noisy": 0.3}


def outcomes(worlds=12):
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(worlds):
        level = rng.normal()
        for method, effect in EFFECTS.items():
            spread = 1.5 if method == "noisy" else 0.01
            cell = {"study": "s", "seed": seed, "method": method, "axis": "base", "dose": 0.5}
            value = level + effect + rng.normal(0, spread)
            rows.append(cell | {"outcome": "gold", "row_id": "", "value": value})
    return pd.DataFrame(rows)


def test_cells_win_tie_and_lose_and_say_which_method():
    against = {name: ["erm"] for name in EFFECTS if name != "erm"}
    cells = analysis.cell_table(outcomes(), against, {"gold": 0.1}).set_index("method")
    assert cells["verdict"].to_dict() == {
        "better": "win", "same": "tie", "worse": "lose", "noisy": "open",
    }  # fmt: skip
    assert (cells["worlds"] == 12).all() and cells.loc["better", "difference"] == pytest.approx(
        0.5, abs=0.02
    )
    advice = analysis.which_method(cells.reset_index(), "erm").iloc[0]
    assert (advice["use"], advice["loses"]) == ("better", "worse")
    assert advice["why"].startswith("gains 0.50 [")
    rest = analysis.which_method(cells.reset_index(), "erm", leave_out=["better"]).iloc[0]
    assert (rest["use"], rest["why"]) == ("erm", "nothing is shown to beat it")


def test_families_are_of_equally_many_worlds_and_missing_values_are_counted():
    table = outcomes()
    table.loc[(table["method"] == "worse") & (table["seed"] > 7), "value"] = np.nan
    table = table[(table["method"] != "noisy") | (table["seed"] < 3)]
    cells = analysis.cell_table(
        table, {"worse": ["erm"], "noisy": ["erm"], "absent": ["erm"]}, {"gold": 0.1}
    ).set_index("method")
    assert cells["worlds"].to_dict() == {"worse": 12, "noisy": 3}
    assert cells["seeds"].to_dict() == {"worse": 8, "noisy": 3}


def test_a_difference_of_a_few_worlds_widens_no_other():
    """An outcome that two worlds of twelve have would have a t value of any size."""
    table = outcomes()
    against = {name: ["erm"] for name in ("better", "same", "worse")}
    without = analysis.cell_table(table[table["method"] != "noisy"], against, {"gold": 0.1})
    table.loc[(table["method"] == "noisy") & (table["seed"] > 1), "value"] = np.nan
    cells = analysis.cell_table(table, against | {"noisy": ["erm"]}, {"gold": 0.1})
    pd.testing.assert_frame_equal(cells, without)


def test_a_band_knows_how_many_units_each_difference_has():
    """Eight units among missing ones are eight units."""
    rng = np.random.default_rng(1)
    few = rng.normal(0, 1, (8, 1))
    padded = np.concatenate([few, np.full((16, 1), np.nan)])
    t_values = np.array([2.0])
    whole = analysis.simultaneous(few, t_values, seed=0)
    found = analysis.simultaneous(padded, t_values, seed=0)
    assert found.factor == pytest.approx(whole.factor, rel=0.1)
    assert found.p_values == pytest.approx(whole.p_values, abs=0.03)


def test_a_method_that_loses_more_often_does_not_win():
    table = outcomes().assign(outcome="lose")
    against = {"better": ["erm"], "worse": ["erm"], "same": ["erm"]}
    cells = analysis.cell_table(table, against, {"lose": 0.1}).set_index("method")
    assert cells["verdict"].to_dict() == {"better": "lose", "worse": "win", "same": "tie"}


def test_the_map_names_its_methods_and_doses():
    from matplotlib.figure import Figure

    from robustpo_kit import plots

    cells = analysis.cell_table(outcomes(), {"better": ["erm"], "worse": ["erm"]}, {"gold": 0.1})
    ax = plots.verdict_map(cells, Figure().subplots(), xlabel="share of contaminated rows")
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [f"{name} \N{MINUS SIGN} ERM" for name in ("better", "worse")]
    assert [text.get_text()[:4] for text in ax.texts] == ["+0.5", "\N{MINUS SIGN}0.5"]
