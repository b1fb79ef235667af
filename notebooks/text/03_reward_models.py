# %% [markdown]
# # 03 · Reward models: who says what is better, and how often is it right?
#
# **In one line.** The proxy knows
# what follows: <!--claim proxy_accuracy-->a matching reply from a mismatched one: accuracy 0.88 to 0.96; a correct solution from a wrong one: 0.59 [0.47, 0.70], where 0.5 is a coin; its correlation with the source classifier within sources: 0.00 [-0.18, 0.16]<!--/claim-->.
#
# | reads | writes | time (2 CPU cores) | before | after |
# |---|---|---|---|---|
# | splits `reward` and `judge` | tables `reward_*`, two reward models in `runs/` | about 2 minutes | [02](02_classifier_calibration.ipynb) | [04](04_train_dora.ipynb) |
#
# Listwise methods need a reward for each response, and every result needs a judge. Both are **proxies**. DoRA's Table 7
# reports their preference accuracy; so do we, by kind of pair, because one average would hide what a reward model sees and
# what it is blind to.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from robustpo_kit import calibration, experiments, plots, rewards
from robustpo_kit.notebook import start

# %% tags=["parameters"]
profile = "auto"  # auto | smoke | cpu | gpu | paper
seed = 0
overrides = {}  # settings of the profile to change

# %%
nb = start("03_reward_models", profile=profile, seed=seed, overrides=overrides)
lab = experiments.Lab(nb.cfg, nb.seed)

# %% [markdown]
# ## 1. The Bradley-Terry model
#
# $P(y_w\succ y_l\mid x)=\sigma\big(r(x,y_w)-r(x,y_l)\big)$. Each training pair has *the same kind of author on both
# sides* (a reply against a reply to another prompt, of like length), so the model cannot win by recognising the author;
# it must look at the match of reply and prompt. Two models are fitted, on different splits and seeds: one ranks the
# training data (`reward`), the other only ever judges (`judge`).

# %%
proxy, judge = lab.reward_model("reward"), lab.reward_model("judge")
print("fitted on", len(lab.splits["reward"]), "and", len(lab.splits["judge"]), "prompts")

# %% [markdown]
# ## 2. Held-out preference accuracy, by kind of pair
#
# A quarter of each split's prompts was kept back for this.

# %%
models = {"proxy": proxy, "judge": judge}
accuracy = [model.accuracy(draws=nb.cfg.bootstrap, seed=nb.seed).assign(model=name) for name, model in models.items()]
nb.save_table("reward_accuracy", pd.concat(accuracy))

# %% [markdown]
# ## 3. Does it only relearn the source classifier?
#
# If reward and classifier confidence were one number, DoRA's calibration term would add nothing. So: their correlation,
# over all responses and inside each source.

# %%
held_out = lab.splits["policy"]
scores = {name: model.score_set(held_out) for name, model in models.items()}
table = calibration.response_table(held_out, lab.classifier().score_set(held_out), "c")
both = [table.assign(reward=values.ravel(), model=name) for name, values in scores.items()]
nb.save_table("reward_correlation", pd.concat([rewards.correlation_table(t).assign(model=t["model"].iloc[0]) for t in both]))
agreement = np.corrcoef(scores["proxy"].ravel(), scores["judge"].ravel())[0, 1]
nb.save_table("reward_agreement", pd.DataFrame([{"pearson_proxy_judge": agreement, "responses": len(table)}]))

# %% [markdown]
# ## 4. What was measured

# %%
table = nb.read_table("reward_accuracy")
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
for ax, (name, part) in zip(axes, table.groupby("model", sort=False), strict=True):
    plots.bars_with_ci(part, ax, name="kind", value="accuracy", xlabel="preference accuracy (95 % CI)", reference=0.5)
    ax.set_title(name)
nb.save_figure("reward_accuracy", figure, table)
plt.show()
table.round(3)

# %% [markdown]
# Read it row by row. Matching against mismatched is what the model was trained for, and it does it. Correct against wrong
# solution needs knowledge of the world that a 22-million-parameter encoder lacks. Against synthetic replies the model is
# only as good as relevance is: SmolLM2 stays on topic, and both models prefer its longer replies (`longer_share` in the table).
#
# The papers' proxies (DoRA Table 7) for comparison: GPT-J on HH-RLHF 74.6 %, DeBERTa-large on summaries 89.2 %, UltraRM on
# UltraFeedback 74.6 %, Eurus-RM on HH 65.0 %.

# %%
agreement = nb.read_table("reward_agreement").iloc[0, 0]
print(f"correlation of proxy and judge over all responses: {agreement:.2f}")
nb.read_table("reward_correlation")[["model", "scope", "n", "pearson", "spearman"]].round(2)

# %% [markdown]
# Where the correlation inside a source is small, reward and confidence carry different news, and the product
# $\tilde h\,\ell$ of the next notebook has something to say.

# %%
table = nb.read_table("reward_accuracy")
matched = table[(table["model"] == "proxy") & table["trained_kind"]]
assert (matched["accuracy"] > 0.5).all()
print("CHECK the proxy prefers matching replies: pass")

# %% [markdown]
# ## Exercises
#
# 1. Why must the judge have its own split *and* its own seed?
#
# <details><summary>Solution</summary>A policy trained on the proxy's ranking learns the proxy's errors too. A judge that
# shares them would reward exactly those.</details>

# %%
nb.finish({"matched_accuracy": float(matched["accuracy"].min()), "agreement": agreement})
