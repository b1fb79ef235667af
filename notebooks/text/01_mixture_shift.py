# %% [markdown]
# # 01 · Mixture shift: what is it, and how far is far?
#
# **In one line.** Two of four responses to each prompt come from SmolLM2 instead of a person, and a classifier that looks
# at nothing but the number of words already tells the two kinds apart.
#
# | reads | writes | time (2 CPU cores) | before | after |
# |---|---|---|---|---|
# | human text from pinned wheels, `data/synthetic/` | tables `mixture_*`, `source_*` | about 1 minute | [00](00_start_here.ipynb) | [02](02_classifier_calibration.ipynb) |
#
# Words and symbols: [glossary](../docs/glossary.md).
#
# Preference data is rarely written by one author. DoRA's Definition 2.1 gives the situation a name: for a prompt $x$ the
# responses follow a **mixture response shift** when
#
# $$P(y\mid x)=\alpha\,Q_0(y\mid x)+\sum_{i=1}^{n-1}\beta_i\,Q_i(y\mid x),\qquad \alpha+\sum_i\beta_i=1.$$
#
# - $P(y|x)$: how likely the data has response $y$ to prompt $x$; $n$: number of sources
# - $Q_0$, $\alpha$: the target source and its share; $Q_i$, $\beta_i$: another source and its share
#
# $Q_0$ is the *target* (here: a person who knows how), the $Q_i$ are other authors. A model trained on $P$ learns the
# habits of every $Q_i$; the aim is to learn $Q_0$.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from robustpo_kit import analysis, experiments, mixture, paths, plots, records
from robustpo_kit.notebook import start

# %% tags=["parameters"]
profile = "auto"  # auto | smoke | demo | cpu | gpu | paper
seed = 0
overrides = {}  # settings of the profile to change, e.g. {"contamination": 0.5}

# %%
nb = start("01_mixture_shift", profile=profile, seed=seed, overrides=overrides)
lab = experiments.Lab(nb.cfg, nb.seed)

# %% [markdown]
# ## 1. The rows
#
# The default task is `how_to`: everyday goals (PIQA), each with a correct human solution $y_0$ and a subtly wrong human
# solution $y_1$. Two replies sampled from SmolLM2-135M-Instruct complete the row, so $K=4$, the papers' own shape (DoRA
# App. C.1 adds two replies of Mistral-7B-Instruct to each human pair). Human text stays in its wheel; only the model's
# replies are stored in this repository.

# %%
rows = lab.rows
print(rows)
print("dropped on the way:", rows.dropped)
print("columns:", ", ".join(rows[0].sources))
print({name: len(part) for name, part in lab.splits.items()})

# %% [markdown]
# The six splits share no prompt: whoever scores a row was never trained on it.

# %%
groups = [{row.group for row in part} for part in lab.splits.values()]
assert all(groups[i].isdisjoint(groups[j]) for i in range(len(groups)) for j in range(i))
print("CHECK splits share no prompt: pass")

# %% [markdown]
# ## 2. Sampling is the slow step, so it is stored, and checked
#
# Temperature 0.8, top-k 50, top-p 0.9, repetition penalty 1.1. Each batch draws from its own random stream, so one batch
# can be drawn again alone. Under the larger profiles the next cell samples the first stored batch again with the real
# model and compares; under `smoke` and `demo` two prompts are sampled twice instead.

# %%
prompts, same = lab.resample(batch=0)
print(f"{prompts} prompts sampled again; share with the same replies: {same:.2f}")

# %% [markdown]
# The share need not be 1. Another number of threads or another processor changes the last bits of bfloat16, and sampling
# amplifies a changed bit into another word. This is the reason why the replies are stored.
#
# ## 3. Who wrote what
#
# The composition of the training split is a setting: with `contamination` = 0.3, in three of ten samples a synthetic
# reply replaces the golden one and a biased reward ranks it first. This is the shift the method is for: the data says
# "golden" and it is not.

# %%
clean = lab.splits["policy"]
mixed, mask = lab.mixed()
composition = pd.concat(
    [mixture.composition(part).assign(data=name) for name, part in (("clean", clean), ("contaminated", mixed))]
)
nb.save_table("mixture_composition", composition)

# %% [markdown]
# ## 4. How far is far?
#
# Three yardsticks, from crude to fine: the length in words; the area under the ROC curve of that length alone; and the
# energy distance between MiniLM embeddings, zero when two sources are one. "Correct against wrong" is the control: both
# were written by people.

# %%
sources = dict.fromkeys(clean[0].sources)
texts_of = {s: [t for row in rows for t, who in zip(row.responses, row.sources, strict=True) if who == s] for s in sources}
texts_of = {name: texts[: nb.cfg.distance_rows] for name, texts in texts_of.items()}
words = pd.DataFrame([{"source": s, "words": len(t.split())} for s, texts in texts_of.items() for t in texts])
nb.save_table("source_words", words.value_counts(["source", "words"]).rename("responses").reset_index())

vectors = {name: lab.encoder.embed(texts).numpy() for name, texts in texts_of.items()}
golden = next(iter(sources))
distances = [
    {
        "source": name,
        "against": golden,
        "median_words": np.median([len(t.split()) for t in texts_of[name]]),
        "auc_of_length": roc_auc_score(
            np.repeat([0, 1], [len(texts_of[golden]), len(texts_of[name])]),
            [len(t.split()) for t in texts_of[golden] + texts_of[name]],
        ),
        "energy_distance": analysis.energy_distance(vectors[golden], vectors[name], paired=True),
        "responses": len(texts_of[name]),
    }
    for name in list(sources)[1:]
]
nb.save_table("source_distances", pd.DataFrame(distances))

# %% [markdown]
# ## 5. What it looks like
#
# From here on the notebook explains: it reads the tables of the newest run of this profile, or those of the committed
# run, and says which.

# %%
table = nb.read_table("mixture_composition")
figure = plots.draw("mixture_composition", table)
nb.save_figure("mixture_composition", figure, table)
plt.show()

# %% [markdown]
# Above, the papers' shape: one golden column, one human rejected, two synthetic. Below, the golden column itself is mixed:
# $\alpha$ has fallen inside the slot that supervised fine-tuning and every ranking trust most.

# %%
record = records.read_json(paths.SYNTHETIC / f"{nb.cfg.task}.json")  # how the synthetic replies were sampled
table = nb.read_table("source_words").assign(token_limit=record["sampling"]["max_new_tokens"])
figure = plots.draw("source_words", table)
nb.save_figure("source_words", figure, table)
plt.show()
nb.read_table("source_distances").round(2)

# %% [markdown]
# Synthetic replies are longer, the two human columns alike, and in embedding space the picture repeats. Against the golden
# column: <!--claim source_distances-->SmolLM2 AUC 0.88, energy distance 0.061; the wrong human solution AUC 0.50, energy distance 0.000<!--/claim-->. **Source is not correctness**: a classifier of sources will trust a wrong human solution. Keep
# this in mind in notebook 02.

# %%
table = nb.read_table("source_distances").set_index("source")
synthetic, human = table.loc["smollm2"], table.drop("smollm2").iloc[0]
assert synthetic.energy_distance > human.energy_distance
assert abs(synthetic.auc_of_length - 0.5) > abs(human.auc_of_length - 0.5)
print("CHECK synthetic replies lie farther from golden than human ones: pass")

# %% [markdown]
# ## Exercises
#
# 1. Run with `overrides = {"task": "dialogue"}`. Do chit-chat replies differ as much from SmolLM2's?
#
# <details><summary>Solution</summary>People chat in short, broken lines and the model in polished sentences: the
# distance is larger, and the length gap too.</details>
#
# 2. Which $\alpha$ does the golden *column* have at contamination 0.3, and which the whole sample of four?
#
# <details><summary>Solution</summary>0.7 of the column, and $0.7\cdot\tfrac14=0.175$ of all responses: a contaminated
# sample holds no golden reply at all.</details>

# %%
nb.finish({"energy_distance_synthetic": synthetic.energy_distance, "auc_of_length": synthetic.auc_of_length})
