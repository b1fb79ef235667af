"""The papers' numbers, written down here a second time from their tables, against the presets."""

import dataclasses
import subprocess
import sys

import pytest

from robustpo_kit import data, experiments, objectives, profiles, published
from robustpo_kit.encoders import FineTune
from robustpo_kit.errors import KitError
from robustpo_kit.experiments.steps import Steps, train_config
from robustpo_kit.published import PRESETS
from robustpo_kit.training import TrainConfig

# DoRA Table 8: "Hyperparameters for different baselines and tasks."
TABLE_8 = {
    ("hh", "dpo"): {"beta": 0.1},
    ("hh", "r_dpo_length"): {"beta": 0.1, "alpha": 0.01},
    ("hh", "exo"): {"beta": 0.5},
    ("hh", "simpo"): {"beta": 2.0, "gamma0": 0.8},
    ("hh", "dpo_pl"): {"beta": 0.1},
    ("hh", "rrhf"): {"alpha": 1.0},
    ("hh", "lire"): {"temperature": 2.0},
    ("summarization", "dpo_pl"): {"beta": 0.5},
    ("summarization", "rrhf"): {"alpha": 0.5},
    ("summarization", "lire"): {"temperature": 1.0},
    ("ultrafeedback", "dpo_pl"): {"beta": 0.1},
    ("ultrafeedback", "rrhf"): {"alpha": 1.0},
    ("ultrafeedback", "lire"): {"temperature": 2.0},
}
PAIRWISE = ("dpo", "r_dpo_length", "exo", "simpo")
# DoRA App. C.3, "General training settings": pairwise and listwise rate of the two base models.
RATES = {"mistral-7b": (3e-7, 2e-5), "llama-8b": (6e-7, 4e-5)}
# gamma-PO Table 7: beta, gamma, tau, learning rate; gamma is gamma0 / beta (SimPO's convention).
TABLE_7 = {
    "llama-3-8b-instruct": (10.0, 0.4, 10.0, 1e-6),
    "mistral-7b-instruct": (2.5, 0.15, 10.0, 6e-7),
    "gemma-2-9b-instruct": (10.0, 0.5, 20.0, 8e-7),
    "qwen-2.5-7b-instruct": (10.0, 0.3, 3.0, 1e-6),
}
# gamma-PO App. B, "Training hyperparameters".
APPENDIX_B = {
    "batch_size": 128, "epochs": 1, "schedule": "cosine", "warmup": 0.1, "max_length": 2048,
}  # fmt: skip
# gamma-PO Table 6, without the target margin of beta-DPO's row, which the loss beside it lacks.
TABLE_6 = {
    "dpo": {"beta": (0.01, 0.05, 0.1)},
    "ipo": {"tau": (0.01, 0.1, 0.5, 1.0)},
    "cpo": {"lam": (1.0,), "beta": (0.01, 0.05, 0.1)},
    "kto": {"weight_rejected": (1.0,), "weight_chosen": (1.0,), "beta": (0.01, 0.05, 0.1)},
    "orpo": {"lam": (0.1, 0.5, 1.0, 2.0)},
    "r_dpo_length": {"alpha": (0.05, 0.1, 0.5, 1.0), "beta": (0.01, 0.05, 0.1)},
    "rdpo": {"beta": (0.01, 0.05, 0.1), "epsilon": (0.01, 0.05, 0.1)},
    "cdpo": {"beta": (0.01, 0.05, 0.1), "epsilon": (0.01, 0.05, 0.1)},  # its rDPO by Eq. 5
    "simpo": {"beta": (2.5, 5.0, 10.0), "gamma_beta_ratio": (0.3, 0.4, 0.5, 1.0)},
    "beta_dpo": {"beta": (2.5, 10.0), "alpha": (0.01, 0.05, 0.1, 0.2)},
}


def test_every_preset_is_a_row_of_a_table():
    dora = {
        f"dora/{model}/{task}/{over}{loss}"
        for model in RATES
        for task, loss in TABLE_8
        for over in ("", "dora_")
    }
    sft = {f"dora/{model}/{task}/sft" for model in RATES for task, _ in TABLE_8}
    gamma = {f"gamma/{model}/{loss}" for model in TABLE_7 for loss in ("simpo", "gamma_simpo")}
    assert set(PRESETS) == dora | sft | gamma


@pytest.mark.parametrize("model", RATES)
@pytest.mark.parametrize(("task", "loss"), TABLE_8)
def test_dora_table_8_and_c3(model, task, loss):
    pairwise, listwise = RATES[model]
    for name, aggregator in ((loss, "erm"), (f"dora_{loss}", "dora")):
        row = PRESETS[f"dora/{model}/{task}/{name}"]
        built = objectives.build(row.spec)
        assert (built.base, built.aggregator) == (loss, aggregator)
        options = dict(built.options)
        if loss == "rrhf":
            assert options.pop("supervised") == "first"
        assert options == TABLE_8[task, loss]
        assert built.aggregation == ({"lam": 1.0} if aggregator == "dora" else {})
        full = loss in PAIRWISE or task == "ultrafeedback"
        assert row.lora is not full
        stated = {"batch_size": 32}
        if task != "ultrafeedback":
            stated["learning_rate"] = pairwise if full else listwise
        assert row.settings == stated
        # no rate is given for UltraFeedback: the kit takes the model's other one for full training
        assert row.chosen == ({"learning_rate": pairwise} if task == "ultrafeedback" else {})
        assert ("learning_rate" in row.unstated) is (task == "ultrafeedback")
        assert {"epochs", "schedule", "warmup", "max_length"} <= set(row.unstated)
        assert "DoRA Table 8 and App. C.3" in row.source


@pytest.mark.parametrize("model", TABLE_7)
def test_gamma_po_table_7_and_appendix_b(model):
    beta, ratio, tau, rate = TABLE_7[model]
    dynamic = objectives.build(PRESETS[f"gamma/{model}/gamma_simpo"].spec)
    constant = objectives.build(PRESETS[f"gamma/{model}/simpo"].spec)
    assert dynamic.options == {"beta": beta}
    assert dynamic.margin == {"gamma_beta_ratio": ratio, "tau": tau}
    assert constant.options == {"beta": beta, "gamma_beta_ratio": ratio}
    for loss in ("simpo", "gamma_simpo"):
        row = PRESETS[f"gamma/{model}/{loss}"]
        assert row.settings == APPENDIX_B | {"learning_rate": rate}
        assert (row.lora, row.chosen, row.task) == (False, {}, "ultrafeedback")
        assert row.unstated == ("dtype",)


def test_sft_is_the_dpo_codebases_config():
    """C.3 means its lr 5e-7, n_epochs 1, max_length 512, max_grad_norm 10; the batch is C.3's."""
    for name, row in PRESETS.items():
        if name.endswith("/sft"):
            assert row.settings == {
                "batch_size": 32,
                "learning_rate": 5e-7,
                "epochs": 1,
                "max_length": 512,
                "max_grad_norm": 10.0,
            }
            assert not row.lora


def test_gamma_po_table_6():
    assert published.SEARCH_RANGES == TABLE_6
    for base, ranges in published.SEARCH_RANGES.items():
        for place in range(max(map(len, ranges.values()))):
            options = [f"{key}={values[place % len(values)]}" for key, values in ranges.items()]
            objectives.build(f"{base}({', '.join(options)})")


def test_classifier_and_decoding_of_c3():
    assert published.CLASSIFIER == {"learning_rate": 2e-5, "epochs": 3}
    assert published.NEW_TOKENS == {"hh": 128, "tldr": 512, "ultrafeedback": 1024}


def test_presets_name_tasks_and_settings_of_the_kit():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for name, row in PRESETS.items():
        assert (
            row.task in data.TASKS and row.task in published.ROWS and row.model in published.SHAPES
        )
        assert set(row.settings) | set(row.chosen) <= fields
        assert objectives.build(name).spec == objectives.build(row.spec).spec
        TrainConfig(**row.settings, **row.chosen)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(
        KitError, match="did you mean .*dora/mistral-7b/hh/dpo_pl.*robustpo presets"
    ):
        published.preset("dora/mistral/hh/dpo_pl")
    with pytest.raises(KitError, match="preset '###': unknown"):
        published.preset("###")


# --- profile paper -------------------------------------------------------------------------------

LLAMA = "meta-llama/Llama-3.1-8B"


def settings_of(cfg: profiles.Profile, loss: str) -> tuple:
    cfg = cfg.of_method(loss)
    run = train_config(cfg, seed=0)
    return run.learning_rate, cfg.lora_targets, run.batch_size


def test_profile_paper_follows_model_and_task():
    mistral = profiles.get("paper")
    llama = profiles.get("paper", {"model": LLAMA, "task": "tldr"})
    assert settings_of(mistral, "dpo_pl") == (2e-5, "all-linear", 32)
    assert settings_of(mistral, "dpo") == (3e-7, "none", 32)
    assert settings_of(llama, "dpo_pl") == (4e-5, "all-linear", 32)
    assert experiments.listwise_spec("dpo_pl erm", mistral) == "erm(dpo_pl(beta=0.1))"
    assert experiments.listwise_spec("dpo_pl erm", llama) == "erm(dpo_pl(beta=0.5))"
    assert (mistral.max_new_tokens, llama.max_new_tokens) == (128, 512)
    ultra = profiles.get("paper", {"task": "ultrafeedback"})
    assert settings_of(ultra, "lire") == (3e-7, "none", 32)


def test_profile_paper_on_gamma_pos_model_is_gamma_pos():
    cfg = profiles.get(
        "paper", {"model": "mistralai/Mistral-7B-Instruct-v0.2", "task": "ultrafeedback"}
    )
    specs = experiments.gamma_methods(cfg)
    assert specs["simpo"] == "simpo(beta=2.5, gamma_beta_ratio=0.15)"
    assert objectives.build(specs["gamma-simpo"]).margin["tau"] == 10.0
    assert experiments.simpo_beta(cfg) == 2.5
    run = train_config(cfg.of_method("simpo"), seed=0)
    assert {name: getattr(run, name) for name in APPENDIX_B} == APPENDIX_B
    assert settings_of(cfg, "simpo") == (6e-7, "none", 128)


def test_overrides_win_over_published_settings():
    cfg = profiles.get("paper", {"learning_rate": 1e-4, "max_new_tokens": 7})
    assert settings_of(cfg, "dpo") == (1e-4, "none", 32)
    assert cfg.max_new_tokens == 7


def test_profile_paper_has_no_contamination_no_penalty_and_a_whole_bert():
    cfg = profiles.get("paper")
    assert (cfg.contamination, cfg.repetition_penalty) == (0.0, 1.0)
    steps = Steps(cfg, seed=0)
    sampling = steps.sampling()
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 50, 0.9)
    assert sampling.repetition_penalty == 1.0
    assert (cfg.classifier_rate, cfg.classifier_epochs, cfg.classifier_frozen) == (2e-5, 3, 0)
    sft = cfg.of_method("sft")
    assert (sft.lora_targets, sft.sft_learning_rate, sft.max_length) == ("none", 5e-7, 512)


@pytest.mark.parametrize("name", ["smoke", "demo", "cpu", "gpu"])
def test_other_profiles_are_their_own(name):
    cfg = profiles.get(name)
    assert all(cfg.of_method(loss) == cfg for loss in ("dpo", "dpo_pl", "simpo", "sft"))
    default = {field.name: field.default for field in dataclasses.fields(FineTune)}
    found = (cfg.classifier_rate, cfg.classifier_head_rate, cfg.classifier_frozen)
    assert found == tuple(
        default[n] for n in ("learning_rate", "head_learning_rate", "frozen_layers")
    )


def test_the_presets_are_read_without_torch():
    code = "import sys, robustpo_kit.published; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
