"""Runs in the toy world: reproducible, exact, within their budget; the classifier learns h~."""

import dataclasses
import time

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from robustpo_kit import objectives, robust, toy
from robustpo_kit.losses import BASES
from robustpo_kit.records import read_json
from robustpo_kit.toy.data import DataConfig
from robustpo_kit.toy.runs import Run
from robustpo_kit.toy.setting import Setting

SMALL = Setting(
    world=toy.world.WorldConfig(topics=3, tones=2, symbols=4, length=3),
    data=DataConfig(rows=48, contamination=0.25),
    sft_epochs=4,
    classifier_rows=48,
    classifier_epochs=2,
    classifier_steps=10,
)
CLEAN = dataclasses.replace(SMALL, data=DataConfig(rows=48))
DORA = "dora(dpo_pl, beta=0.1, lam=1.0)"
LATER_LOSSES = (  # of the table of losses that `toy.study.LOSSES` leaves out
    "rsimpo(beta=2.0, gamma0=0.8, epsilon=0.1)",
    "beta_simpo(beta=2.0, gamma0=0.8, alpha=0.1)",
    "alpha_dpo(beta=2.0, gamma0=0.8, alpha=0.1)",
    "re_po(beta=0.1)",
    "ropo(beta=0.1)",
    "dpo_pro(beta=0.1, rho=0.1)",
    "chi_po(beta=0.05, reward_bound=2.0)",
    "dpop(beta=0.1)",
    "hinge(beta=0.1)",
    "slic(beta=0.1, lam=1.0)",
    "simper()",
    "sppo(beta=0.1)",
    "aot(beta=0.1)",
    "infonca(beta=0.1, temperature=1.0)",
    "nca(beta=0.1, temperature=1.0)",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_seeds_reproduce_a_run_and_tell_runs_apart():
    config = Run(DORA, setting=SMALL, epochs=2)
    first = toy.runs.run(config)
    toy.setting.draw_data.cache_clear()
    toy.setting.start.cache_clear()
    toy.setting.estimate.cache_clear()
    torch.manual_seed(99)  # the global generator has no say
    assert toy.runs.run(config) == first
    other = toy.runs.run(dataclasses.replace(config, setting=dataclasses.replace(SMALL, seed=1)))
    assert other["win_rate"] != first["win_rate"]


def test_a_run_leaves_its_start_as_it_was():
    first = toy.setting.start(SMALL)
    toy.runs.run(Run("dpo_pl(beta=0.1)", setting=SMALL))
    assert torch.equal(
        toy.language.policy_logps(first.policy, first.world).logps, first.distribution.logps
    )


@pytest.mark.parametrize(
    ("spec", "h", "method"),
    [
        ("dpo_pl(beta=0.1)", "oracle", "erm"),
        ("reweight(dpo_pl, beta=0.1)", "estimated", "reweight"),
        (DORA, "oracle", "dora+oracle"),
        ("reweight(dpo_pl, beta=0.1)", "slot", "reweight+slot"),
        ("gamma(simpo, beta=2, gamma_beta_ratio=0.4, tau=10)", "estimated", "erm_gamma"),
        ("dro(dpo, beta=0.1, lam=1)", "estimated", "dro"),
    ],
)
def test_every_kind_of_objective_runs(spec, h, method):
    row = toy.runs.run(Run(spec, h=h, setting=SMALL, epochs=1))
    assert row["method"] == method and 0 < row["win_rate"] < 1 and 0 < row["mass"] <= 1
    assert row["win"] + row["tie"] + row["lose"] == pytest.approx(1, abs=1e-9)
    assert row["kl_reference"] > 0 and row["kl_golden"] > 0
    if method == "dora+oracle":
        assert row["h_rank"] == pytest.approx(1)


@pytest.mark.parametrize("spec", [*LATER_LOSSES, "kldpo(dpo(beta=0.1))"])
def test_every_later_loss_takes_a_step(spec):
    config = Run(spec, setting=SMALL, epochs=1, batch_size=SMALL.data.rows)
    row = toy.runs.run(config)
    assert row["objective"] == objectives.build(spec).spec
    assert row["kl_reference"] > 0 and 0 < row["mass"] <= 1


def test_the_weights_of_a_run_by_name():
    setting = dataclasses.replace(SMALL, data=DataConfig(rows=400, contamination=0.5))
    clean = ~toy.setting.draw_data(setting).policy_data.contaminated.numpy()
    assert (toy.setting.weights(setting, "mask").numpy() == clean).all()
    exact = toy.setting.weights(setting, "slot_oracle").numpy()
    assert exact.max() <= 1 / 0.5 and exact.mean() == pytest.approx(1, abs=0.1)
    oracle = toy.setting.weights(setting, "oracle").numpy()
    assert roc_auc_score(clean, exact) > roc_auc_score(clean, oracle)
    estimated = toy.setting.weights(setting, "slot").numpy()
    assert np.corrcoef(estimated, exact)[0, 1] > 0.3


def test_h_of_a_run_is_refused_unless_known():
    with pytest.raises(ValueError, match="h = 'guessed'"):
        Run(h="guessed")


def win_rates_around_sft(seed):
    """Win rate and KL to golden on held-out prompts, before and after SFT."""
    setting = Setting(seed=seed)
    world = toy.world.build(dataclasses.replace(setting.world, seed=seed))
    untrained = toy.language.policy_logps(toy.setting.fresh_policy(world, setting), world)
    first = toy.setting.start(setting)
    measures = [
        toy.truth.evaluate(world, distribution, world.held_out_prompts)
        for distribution in (untrained, first.distribution)
    ]
    return [(measure["win_rate_valid"], measure["kl_golden"]) for measure in measures]


def test_training_does_what_it_should():
    """SFT moves a policy towards golden, training on true rewards above it; a run costs seconds."""
    before, after = np.mean([win_rates_around_sft(seed) for seed in (0, 1, 2)], axis=0)
    assert after[1] < before[1] / 2 and after[0] > before[0] + 0.1
    started = time.process_time()
    row = toy.runs.run(Run(DORA, setting=Setting(seed=1)))
    spent = time.process_time() - started
    assert row["sft_mass"] > 0.9
    assert row["win_rate_valid"] > row["sft_win_rate_valid"] + 0.1
    assert spent < 12  # the aim is 5 s of a core of 2024; a slow one gets some room


def test_rank_correlation_of_h_grows_with_the_classifiers_data():
    def mean_rank(rows):
        settings = [
            Setting(seed=seed, data=DataConfig(rows=100), classifier_rows=rows) for seed in (0, 1)
        ]
        return np.mean([toy.runs.h_quality(setting)["h_rank"] for setting in settings])

    few, many = mean_rank(24), mean_rank(400)
    assert many > few + 0.1 and many > 0.5


def test_untrusted_golden_labels_hurt_the_classifier():
    data = DataConfig(rows=100, contamination=0.5)
    settings = [Setting(data=data, trusted=flag, classifier_rows=200) for flag in (True, False)]
    trusted, other = (toy.runs.h_quality(setting) for setting in settings)
    assert trusted["auc"] > other["auc"] + 0.05
    assert trusted["bayes_auc"] == other["bayes_auc"] > trusted["auc"]


def test_classifier_rows_are_another_draw():
    _, data, other = toy.setting.draw_data(SMALL)
    assert [row.responses for row in data.prefs] != [row.responses for row in other.prefs]
    assert data.contaminated.any() and not other.contaminated.any()


# --- studies -------------------------------------------------------------------------------------


def test_methods_are_the_presets_at_one_lambda():
    presets = {"erm": "dora/mistral-7b/hh/dpo_pl", "dora": "dora/mistral-7b/hh/dora_dpo_pl"}
    built = {name: objectives.build(spec) for name, spec in toy.study.METHODS.items()}
    for name, preset in presets.items():
        assert built[name].spec == objectives.build(preset).spec
    assert all(built[name].aggregator == name for name in built)
    assert built["dro"].aggregation == built["dora"].aggregation == {"lam": robust.DEFAULT_LAM}


def test_quickstart_shows_the_whole_idea():
    found = toy.study.quickstart(0, setting=SMALL)
    assert found.sources["source"].tolist() == ["golden", "synthetic1", "synthetic2", "synthetic3"]
    assert found.results["method"].tolist() == [
        "erm",
        "reweight",
        "reweight+oracle",
        "dro",
        "dora",
        "dora+oracle",
    ]
    assert len(found.samples) == 48 and found.samples["contaminated"].any()
    assert found.samples.groupby("contaminated")["true_h"].mean().is_monotonic_decreasing


def test_methods_study_has_its_200_runs_and_names_them():
    configs = toy.study.methods_study(range(10))
    assert len(configs) >= 200 and len(set(configs)) == len(configs)
    table = pd.DataFrame([toy.runs.settings_row(config.setting) for config in configs])
    named = toy.study.name_conditions(table)
    assert named["condition"].value_counts().to_dict() == dict.fromkeys(toy.study.CONDITIONS, 60)


def test_the_study_and_the_later_losses_are_the_table_of_losses():
    """The study has each as a mean and under DRO; a new loss is not forgotten."""
    losses = [objectives.build(config.objective) for config in toy.study.losses_study([0])]
    later = {objectives.build(spec).base for spec in LATER_LOSSES}
    assert {(built.base, built.aggregator) for built in losses} == {
        (base, aggregator) for base in set(BASES) - later for aggregator in ("erm", "dro")
    }


def test_dose_study_turns_one_knob_at_a_time():
    configs = toy.study.dose_study([3, 4])
    doses = [(c.setting.data.contamination, c.setting.data.label_noise) for c in configs]
    assert len(set(doses)) == len(doses) / 2 == 10 and (0.0, 0.0) in doses
    assert all(0.0 in pair for pair in doses)


def test_h_study_grows_the_classifiers_data():
    settings = toy.study.h_study([0, 1], rows=(32, 64))
    assert [(s.trusted, s.classifier_rows) for s in settings[::2]] == [
        (True, 32),
        (True, 64),
        (False, 32),
        (False, 64),
    ]


def test_reference_tables_carry_their_record(tmp_path, monkeypatch):
    """Tables, their JSON beside them, nothing else; a second writing gives the same numbers."""
    monkeypatch.setattr(
        toy.study, "methods_study", lambda seeds: list(toy.study.comparison(CLEAN, oracle=False))
    )
    for name in ("dose_study", "losses_study"):
        monkeypatch.setattr(toy.study, name, lambda seeds: [Run(setting=SMALL)])
    monkeypatch.setattr(toy.study, "h_study", lambda seeds: [SMALL])
    monkeypatch.setattr(toy.study, "CONDITIONS", {"small": CLEAN.data})
    toy.study.write_reference(tmp_path, seeds=[0], workers=1)
    names = {path.name for path in tmp_path.iterdir()}
    tables = ("toy_sweep", "toy_dose", "toy_losses", "toy_h_rank")
    assert names == {f"{table}{end}" for table in tables for end in (".csv", ".json")}
    table, record = pd.read_csv(tmp_path / "toy_sweep.csv"), read_json(tmp_path / "toy_sweep.json")
    assert table["method"].tolist() == ["erm", "reweight", "dro", "dora"] and set(
        table["condition"]
    ) == {"small"}
    assert (
        record["config"]["seeds"] == [0]
        and record["versions"]["torch"]
        and record["duration_s"] > 0
    )
    (tmp_path / "again").mkdir()
    toy.study.write_reference(tmp_path / "again", seeds=[0], workers=1)
    again = pd.read_csv(tmp_path / "again" / "toy_sweep.csv")
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), again.drop(columns="seconds"))
