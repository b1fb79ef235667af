"""Parts that move: their mathematics is the package's, their state is JSON, their controls work."""

import json
import shutil
import subprocess

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from robustpo_kit import calibration, margins, notebook, policies, robust, toy, widgets
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.widgets import CATALOGUE, live
from robustpo_kit.widgets.pair import losses as per_pair

NODE = shutil.which("node")


def in_node(name, expression, values, tmp_path):
    """The value of an expression over the functions of a part's module, computed by node."""
    if NODE is None:
        pytest.skip("node is not installed")
    module = tmp_path / f"{name}.mjs"
    module.write_text(CATALOGUE[name].module)
    code = f'import * as part from "{module.as_uri()}"; const v = {json.dumps(values)};'
    code += f"console.log(JSON.stringify({expression}));"
    done = subprocess.run([NODE, "--input-type=module", "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_part_is_one_module_that_asks_for_nothing(name):
    text = CATALOGUE[name].module
    assert text.count("export default { render };") == 1
    for word in ("import ", "import(", "fetch(", "http:", "https:", "eval("):
        assert word not in text.replace("http://www.w3.org/2000/svg", ""), word


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_state_is_json_and_has_all_that_the_module_reads(name):
    state = CATALOGUE[name].state()
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    assert state == CATALOGUE[name].state()


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_figure_follows_the_state(name):
    matplotlib.use("Agg")
    drawn = CATALOGUE[name].figure(CATALOGUE[name].state())
    assert drawn.get_suptitle() and drawn.axes
    plt.close("all")


@pytest.mark.parametrize("kind", ["erm", "dro", "reweight", "dora"])
@pytest.mark.parametrize("lam", [0.05, 1.0, 50.0])
def test_weights_in_the_browser_are_the_packages(kind, lam, tmp_path):
    state = CATALOGUE["batch_weights"].state()
    losses, h = (torch.tensor(state[key], dtype=torch.float64) for key in ("losses", "h"))
    ours = robust.weights(losses, h, kind=kind, lam=lam)
    values = [kind, state["losses"], state["h"], lam]
    theirs = in_node("batch_weights", "part.weights(...v)", values, tmp_path)
    assert np.allclose(theirs, ours, rtol=1e-12)
    carried = in_node("batch_weights", "part.effective(v)", theirs, tmp_path)
    assert carried == pytest.approx(float(robust.effective_sample_size(ours)))


@pytest.mark.parametrize(("gamma0", "tau"), [(4, 10), (0.375, 10), (3, 3), (10, 0.3), (0.1, 100)])
def test_margins_in_the_browser_are_the_packages(gamma0, tau, tmp_path):
    gaps = [10 * gap for gap in CATALOGUE["gamma_gap"].state()["gaps"]]
    exact = margins.target_margins(torch.tensor(gaps, dtype=torch.float64), gamma0=gamma0, tau=tau)
    theirs = in_node("gamma_gap", "part.margins(...v)", [gaps, gamma0, tau], tmp_path)
    assert np.allclose(theirs, exact, rtol=1e-9)


def test_show_draws_where_nobody_looks_and_moves_where_someone_does(monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.setattr(notebook, "_started", [])
    monkeypatch.setenv("ROBUSTPO_PROFILE", "smoke")
    assert widgets.show("batch_weights") is None
    monkeypatch.setenv("ROBUSTPO_PROFILE", "demo")
    moving = widgets.show("batch_weights", lam=0.3)
    assert moving.lam == 0.3 and "export default" in moving._esm
    assert set(CATALOGUE["batch_weights"].state()) <= set(moving.keys)
    plt.close("all")


def test_show_refuses_what_is_not_there():
    with pytest.raises(KitError, match="part 'wheel': unknown; there are batch_weights"):
        widgets.show("wheel")
    with pytest.raises(KitError, match="rho: part 'batch_weights' has losses"):
        widgets.show("batch_weights", rho=1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_reliability_and_h_in_the_browser_are_the_packages(temperature, tmp_path):
    state = CATALOGUE["reliability"].state()
    c, golden = np.array(state["c"]), np.array(state["golden"]).ravel()
    ours = calibration.Temperature(temperature)(np.log(c) - np.log1p(-c))
    expression = "(() => { const rows = v.c.map((row) => row.map((c) => part.tempered(c, v.t)));"
    expression += "const bins = part.bins(rows.flat(), v.golden.flat(), 10);"
    expression += "return [rows, bins, part.ece(bins), rows.map(part.factor)]; })()"
    values = {"c": state["c"], "golden": state["golden"], "t": temperature}
    rows, bins, error, h = in_node("reliability", expression, values, tmp_path)
    assert np.allclose(rows, ours)
    table = calibration.reliability(golden, ours.ravel())
    assert [bin["count"] for bin in bins] == table["count"].tolist()
    assert np.allclose([bin["golden"] for bin in bins], table["golden_share"])
    assert error == pytest.approx(calibration.ece(golden, ours.ravel()))
    assert np.allclose(h, calibration.uniform_factor(torch.from_numpy(ours)))


def test_cells_in_the_browser_are_the_studys(tmp_path):
    state = CATALOGUE["phase"].state()
    for harm, _ in state["harms"]:
        for outcome, _ in state["outcomes"]:
            own = [c for c in state["cells"] if c["harm"] == harm and c["outcome"] == outcome]
            given = [state["cells"], harm, outcome]
            rows = in_node("phase", "part.rows(...v)", given, tmp_path)
            assert sum(len(row["cells"]) for row in rows) == len(own) > 0
            assert all(
                row["cells"] == sorted(row["cells"], key=lambda c: c["dose"]) for row in rows
            )
            found = dict(in_node("phase", "part.counts(v)", rows, tmp_path))
            verdicts = [cell["verdict"] for cell in own]
            assert found == {name: verdicts.count(name) for name in found}
            assert sum(found.values()) == len(own)


def example_pairs():
    """A state of the part `pair`, of a made-up table of tokens."""
    rows = []
    draws = np.random.default_rng(0)
    for pair in range(4):
        for reply, count in (("chosen", 3 + pair), ("rejected", 5)):
            for place in range(count):
                logp, ref = -3 * draws.random(2)
                rows.append((pair, reply, f" t{place}", logp, ref))
    names = ["pair", "reply", "token", "logp", "ref_logp"]
    return widgets.pair_state(pd.DataFrame(rows, columns=names))


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
@pytest.mark.parametrize("beta", [0.1, 10.0])
def test_a_pairs_loss_and_weight_in_the_browser_are_the_packages(loss, beta, tmp_path):
    state = example_pairs() | {"loss": loss, "beta": beta}
    ours = per_pair(state)
    expression = "v.pairs.map((pair) => part.loss(pair, v.loss, v.beta, v.ratio))"
    theirs = in_node("pair", expression, state, tmp_path)
    assert np.allclose(theirs, ours) and np.ptp(theirs) > 0.01
    shares = in_node("pair", "part.weights(v, 0.7)", theirs, tmp_path)
    assert np.allclose(shares, robust.weights(ours, kind="dro", lam=0.7))


def test_tokens_of_a_pair_sum_to_what_training_scores():
    policy, reference = (policies.tiny(policies.byte_tokenizer(), seed=seed) for seed in (0, 1))
    texts = {"A question": ("an answer", "no"), "Q": ("x", "yz")}
    sources = ("human", "model")
    pairs = PreferenceSet([Preference(q, q, q, replies, sources) for q, replies in texts.items()])
    table = widgets.token_table(policy, reference, pairs)
    batch = policies.collate(
        policies.tokenize(pairs, policy.tokenizer, policy.template, model=policy.model).rows
    )
    for column, model in (("logp", policy.model), ("ref_logp", reference.model)):
        sums = table.groupby(["pair", "reply"])[column].sum().unstack()[["chosen", "rejected"]]
        with torch.no_grad():
            whole = policies.sequence_logps(model, batch)
        assert np.allclose(sums, whole, atol=0.01)
    assert table.loc[table["pair"] == 0, "token"].str.cat().startswith("an answer")


def test_the_toy_world_is_trained_anew_by_its_controls(monkeypatch):
    matplotlib.use("Agg")
    asked = []

    def train(method, **settings):
        asked.append({"method": method} | settings)
        rows = [[name, 0.1 * place, 0.5, 0.9] for place, name in enumerate(["sft", "erm", method])]
        return pd.DataFrame(rows, columns=["policy", "gold", "win_rate", "mass"])

    monkeypatch.setattr(live, "train_toy", train)
    settings = {"method": "dora", "contamination": 0.4, "flips": 0.0, "seed": 0}
    table = train(**settings)
    monkeypatch.setattr(notebook, "_started", ["smoke"])
    assert widgets.toy_live(table, **settings) is None
    monkeypatch.setattr(notebook, "_started", ["demo"])
    panel = widgets.toy_live(table, **settings)
    flips = panel.children[0].children[1]
    flips.value = 0.3
    assert asked[1:] == [settings | {"flips": 0.3}]
    plt.close("all")


def test_a_training_of_the_toy_world_is_the_studys():
    found = widgets.train_toy("dro", contamination=0.2, seed=3).set_index("policy")
    assert list(found.index) == ["sft", "erm", "dro"]
    setting = toy.setting.Setting(seed=3, data=toy.data.DataConfig(contamination=0.2))
    row = toy.runs.run(toy.runs.Run(toy.study.METHODS["dro"], setting=setting))
    assert found.loc["dro", "gold"] == row["gold"] and found.loc["sft", "gold"] == row["sft_gold"]
