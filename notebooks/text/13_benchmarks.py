# %% [markdown]
# # 13 · Benchmarks: what do AlpacaEval 2, Arena-Hard and MT-Bench count, and who judges?
#
# **In one line.** SmolLM2 answers in the formats of the three benchmarks, a language model judges by DoRA's question, and
# stored judgments become scores; on judgments whose truth is known, length control is held beside the raw rate.
#
# | reads | writes | time (2 CPU cores) | before | after |
# |---|---|---|---|---|
# | SmolLM2 | tables `benchmark_*`, files of answers in `runs/` | about 20 seconds | [12](12_self_training_and_rso.ipynb) | [99](99_paper_tables.ipynb) |
#
# Words and symbols: [glossary](../docs/glossary.md).
#
# gamma-PO reports AlpacaEval 2, Arena-Hard and MT-Bench (its Tables 2, 3, 4 and 10), DoRA the first two. None of them can be
# run here as published: their judge is GPT-4 of a certain month. What can be held true without it is all the rest, the formats,
# the decoding, the arithmetic, and what the arithmetic can and cannot see.

# %%
import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML

from robustpo_kit import benchmarks, encoders, judging, paths, plots, policies
from robustpo_kit.notebook import start
from robustpo_kit.policies import SamplingConfig
from robustpo_kit.records import stream

# %% tags=["parameters"]
profile = "auto"  # auto | smoke | demo | cpu | gpu | paper
seed = 0
overrides = {}  # settings of the profile to change

# %%
nb = start("13_benchmarks", profile=profile, seed=seed, overrides=overrides)
folder = paths.work(nb.cfg.name, nb.run) / "benchmarks"

# %% [markdown]
# ## 1. Questions and answers
#
# Each benchmark keeps its questions in a file of its own; `benchmarks.questions` reads it, names a defect by its row, and
# `benchmarks.answer` writes what the benchmark takes. Here are three small files of the real shape, with questions made up for
# this page; give your copy of `alpaca_eval.json` or `question.jsonl` in their place.

# %%
tasks = "boil an egg, sharpen a knife, paint a door, grow basil, wash a cat, bake bread, fix a tap, fold a map, catch a fish, "
tasks = [task.strip() for task in (tasks + "light a stove, sew a button, tie a knot").split(",")]
hard = {"a1": "Sort three numbers in Python.", "a2": "Why is the sky blue?"}
asked = {
    "alpacaeval": [{"instruction": f"How do I {task}?", "dataset": "made up"} for task in tasks],
    "arena-hard": [{"question_id": key, "category": "made up", "turns": [{"content": text}]} for key, text in hard.items()],
    "mt-bench": [{"question_id": 1, "category": "writing", "turns": ["Write one line about rain.", "Now about snow."]}],
}
questions = {}
for name, rows in asked.items():
    path = folder / f"{name}_questions{benchmarks.BENCHMARKS[name].ending}"
    benchmarks.write_rows(path, rows)
    questions[name] = benchmarks.questions(name, path)
    print(name, len(questions[name]), "questions,", max(len(question.turns) for question in questions[name]), "turns")

# %% [markdown]
# The papers decode like this; temperature 0 is greedy, and MT-Bench has a temperature for each kind of question. DoRA's are
# from its App. C.3; gamma-PO says "as SimPO", whose repository has them for two of the four models.

# %%
papers = ("dora", "gamma/llama-3-8b-instruct", "gamma/mistral-7b-instruct")
pairs = [pair for pair in itertools.product(papers, asked) if pair != ("dora", "mt-bench")]
pd.DataFrame([{"paper": paper, "benchmark": name} | benchmarks.decoding(name, paper) for paper, name in pairs])

# %%
policy = policies.load("smollm2-135m-instruct")
answers = {}
for name in asked:
    settings = benchmarks.decoding(name, papers[1]) | {"temperature": 0.0, "max_new_tokens": 16}
    answers[name] = benchmarks.answer(name, questions[name], policy, settings, model="smollm2", seed=nb.seed)
    benchmarks.write_rows(folder / f"{name}_answers{benchmarks.BENCHMARKS[name].ending}", answers[name])
    print(f"{name}: {', '.join(answers[name][0])}")
kept = [{field: value for field, value in rows[-1].items() if field != "tstamp"} for rows in answers.values()]
HTML("".join(f"<pre>{json.dumps(row, indent=1)}</pre>" for row in kept))

# %% [markdown]
# What you should see: the fields of each format, and one answer in each, as its file has it. Line breaks stay, and MT-Bench's
# second answer has read the first. Here decoding is greedy and short, so that the page is quick;
# `robustpo answer-benchmark alpacaeval --questions FILE --model MODEL --out model_outputs.json` is the whole of it.
#
# ## 2. What a judge is asked
#
# DoRA's App. C.4, word for word:

# %%
form = judging.FORMS["dialogue"]
print(form.ask("How do I boil an egg?", "Eight minutes in boiling water.", "Eggs are food."))

# %% [markdown]
# An answer is a verdict only where it says one. What says none, or two, is counted by its kind and belongs to no share: were it a
# tie, a judge that refuses everything would find all models equal.

# %%
said = ["More helpful: A\nComparison: B is vague.", "**More helpful:** 'B'", "C", "More helpful: <'A' or 'B' or 'C'>"]
said += ["A good reply would say more.", "I'm sorry, but I can't compare these.", ""]
pd.DataFrame({"answer": said, "verdict": [form.read(answer) or judging.UNANSWERED for answer in said]})

# %% [markdown]
# A judge is a function of prompts and two replies. This one asks SmolLM2 in this process; `judging.EndpointJudge` does the same of
# any OpenAI-compatible server, in both orders, several at once, within a budget, and with every answer kept on disk. It judges SmolLM2's
# replies against two that were written for this page. A judge of worth says the same whichever reply comes first.

# %%
# built here for the reader
greedy = SamplingConfig(top_k=1, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_new_tokens=10)
heard = []
def ask(prompts, first, second):
    texts = [form.ask(*parts) for parts in zip(prompts, first, second, strict=True)]
    replies = [reply.text for (reply,) in policies.sample(policy, texts, greedy, seed=nb.seed)]
    heard.extend(replies)
    return [form.read(reply) or judging.UNANSWERED for reply in replies]

prompts, ours = ([row[field] for row in answers["alpacaeval"][:2]] for field in ("instruction", "output"))
written = ["Boil it for eight minutes, then cool it in cold water.", "Draw it along a wet stone at a low angle, both sides alike."]
orders = pd.DataFrame({"as A": ask(prompts, ours, written), "as B": ask(prompts, written, ours)}, index=prompts)
turned = orders["as B"].map({"A": "B", "B": "A", "C": "C"})
unanswered = (orders == judging.UNANSWERED).any(axis=1)
counts = pd.Series(np.select([unanswered, orders["as A"] == turned], ["unanswered", "consistent"], "inconsistent"))
assert len(counts) == len(prompts)
print("CHECK every pair is consistent, inconsistent or unanswered: pass")
HTML(orders.assign(kind=counts.to_numpy(), said=heard[: len(prompts)]).to_html())

# %% [markdown]
# A model this small goes on talking where it should judge, and its verdicts are not to be had: that is why answers without one are
# counted apart. Two pairs say nothing about a judge that does answer; its audit does (`judging.audit`,
# [03](03_reward_models.ipynb)): replies whose worth is known, echoes, padding, halves, and both orders.
# `robustpo judge --endpoint URL --judge-model NAME` runs it on the rows of a file and refuses a table of a judge that fails.
#
# From verdicts to a score, then, with another local judge: the reply that MiniLM finds nearer to the question. (It would fail its audit,
# since nothing is nearer to a question than its echo.) The baseline is SmolLM2, too, with each answer given to the next question; in every
# second row of AlpacaEval's file the two change places, so who should win is known.

# %%
# built here for the reader
encoder = encoders.load("minilm-l6")
def nearer(prompts, first, second):
    asks, a, b = (encoder.embed(texts).numpy() for texts in (prompts, first, second))
    near = [(asks * said).sum(axis=1) / np.linalg.norm(said, axis=1) for said in (a, b)]
    return np.where(near[0] > near[1], "A", "B").tolist()

judge = judging.FunctionJudge("nearer by MiniLM", nearer)
rows = answers["alpacaeval"]
sides = []
for place, (row, other) in enumerate(zip(rows, rows[1:] + rows[:1], strict=True)):
    outputs = (row["output"], other["output"])
    sides.append([row | {"output": outputs[(place + side) % 2], "generator": f"side {side}"} for side in (0, 1)])
annotations = benchmarks.annotate(judge, *zip(*sides, strict=True), seed=nb.seed)
benchmarks.write_rows(folder / "annotations.json", annotations)
alpaca = benchmarks.alpacaeval(benchmarks.judgments("alpacaeval", folder / "annotations.json"))
swapped = [row | {"choices": other["choices"]} for row, other in zip(answers["arena-hard"], answers["arena-hard"][::-1], strict=True)]
arena = benchmarks.arena_hard(benchmarks.play(judge, questions["arena-hard"], answers["arena-hard"], swapped))
right = [row["preference"] == 2 - place % 2 for place, row in enumerate(annotations)]
assert np.mean(right) > 0.7 and arena["score"].item() > 50
print("CHECK answers to the question win over answers to another one: pass")
HTML(alpaca.round(1).to_html(index=False) + arena.round(1).to_html(index=False))

# %% [markdown]
# What you should see: the rows that `robustpo score-benchmark` prints, made of the files that a benchmark's own code would have
# stored. `missing` and `unreadable` count what the judge left open.
#
# ## 3. Length control, where the truth is known
#
# A judge that likes length lifts whoever writes more. AlpacaEval 2 therefore fits
#
# $$P(\text{model}\succ\text{baseline}\mid x)=\sigma\Big(\theta+\varphi\tanh\frac{\ell_b-\ell_m}{\mathrm{sd}}+\psi\,d_x\Big)$$
#
# with the lengths of both outputs and the difficulty $d_x$ of the instruction, and predicts with $\ell_b=\ell_m$ (Dubois et al.
# 2024).
#
# - $\theta$: what the model is worth at equal length; $\ell_m,\ell_b$: lengths of its output and the baseline's; sd: of their difference
# - $\varphi$: the judge's liking of brevity; $\psi$: how much a difficult instruction $x$ helps; $\succ$: is preferred to
#
# Judgments are drawn here from that very model, of five qualities $\theta$ and three habits of writing, so what a model
# wins at equal length is known.

# %%
# built here for the reader
def judged(theta, longer, merit, rows=400):
    """Annotations; `merit` is what a standard deviation of length is worth to the reader, not only to the judge."""
    draw = stream(nb.seed, "judgments", str(theta), str(longer), str(merit))
    lengths = draw.normal([[2000], [2000 + 500 * longer]], 500, (2, rows)).clip(1).astype(int)
    scaled = (lengths[1] - lengths[0]) / (lengths[1] - lengths[0]).std()
    deserved = theta + merit * scaled
    chance = 1 / (1 + np.exp(-deserved - 1.5 * np.tanh(scaled)))
    texts = {f"output_{place + 1}": ["x" * length for length in lengths[place]] for place in (0, 1)}
    table = pd.DataFrame(texts | {"preference": 1 + (draw.random(rows) < chance)})
    return table.assign(generator_1="baseline", generator_2="model"), 100 * np.mean(1 / (1 + np.exp(-deserved)))

habits = {"shorter": -1, "alike": 0, "longer": 1}
points = []
for (habit, longer), theta in itertools.product(habits.items(), (-2.0, -1.0, 0.0, 1.0, 2.0)):
    annotations, truth = judged(theta, longer, merit=0.0)
    scores = benchmarks.alpacaeval(annotations.to_dict("records")).iloc[0]
    points += [{"replies": habit, "score": "raw", "truth": truth, "value": scores["win_rate"]}]
    points += [{"replies": habit, "score": "length-controlled", "truth": truth, "value": scores["length_controlled_winrate"]}]
points = pd.DataFrame(points).assign(judgments=400)
nb.save_table("benchmark_length_control", points)

# %%
figure = plots.draw("benchmark_length_control", points)
nb.save_figure("benchmark_length_control", figure, points)
plt.show()

# %%
error = points.assign(error=(points["value"] - points["truth"]).abs()).groupby(["score", "replies"])["error"].mean().unstack()
assert (error.loc["length-controlled"] < 5).all() and (error.loc["raw", ["longer", "shorter"]] > 8).all()
print("CHECK length control is within five points of the truth, the raw rate of a longer or shorter writer is not: pass")
error.round(0).astype(int)

# %% [markdown]
# On the grey line a score is right. The raw rate leaves it, upwards for those who write more; the controlled one stays, whatever
# the habit. Now the other case, which no formula can tell from the first: length that readers *deserve*, because longer replies
# here are better ones.

# %%
rows = []
for merit in (0.0, 1.5):
    annotations, truth = judged(0.0, 1, merit)
    scores = benchmarks.alpacaeval(annotations.to_dict("records")).iloc[0]
    rows.append({"longer is better": merit > 0, "what readers prefer": truth, "raw": scores["win_rate"], "length-controlled": scores["length_controlled_winrate"]})
earned = pd.DataFrame(rows).set_index("longer is better")
nb.save_table("benchmark_earned_length", earned.reset_index())
assert earned.loc[True, "length-controlled"] < earned.loc[True, "what readers prefer"] - 10
print("CHECK where length is earned, length control takes it away: pass")
earned.round(0).astype(int)

# %% [markdown]
# Length control answers "who wins at equal length", not "who is better". The number of the leaderboard needs its own judgments:
#
# ```
# robustpo score-benchmark alpacaeval --repo path/to/alpaca_eval     # beside what the leaderboard prints
# ```
#
# On made-up annotations the kit's fit and alpaca_eval's own are the same in every digit (`tests/test_benchmarks.py`).
#
# ## 4. Arena-Hard, and its interval
#
# Every question is judged twice, with the baseline first and with the model first; `A>>B` counts as three battles. Its interval draws
# *battles* with replacement, as if the two games and the three battles of one question were independent. The kit's draws questions.
# Which one covers? Judgments of models of known score, many times:

# %%
labels = np.array([["A>>B", "B>>A"], ["A>B", "B>A"], ["A=B", "A=B"], ["B>A", "A>B"], ["B>>A", "A>>B"]])
shares = np.array([0.15, 0.25, 0.1, 0.35, 0.15])
weights, worth = np.array([3, 1, 1, 1, 3]), np.array([0, 0, 0.5, 1, 1])
truth = 100 * (shares * weights) @ worth / (shares @ weights)
draw = stream(nb.seed, "arena")
games = []
for model in range(40):
    for number, (first, second) in enumerate(labels[draw.choice(5, size=100, p=shares)]):
        games.append({"question_id": number, "model": f"m{model}", "games": [{"score": first}, {"score": second}]})
table = benchmarks.arena_hard(games, draws=500, seed=nb.seed)
covered = {
    "Arena-Hard's, over battles": table["arena_low"].le(truth) & table["arena_high"].ge(truth),
    "the kit's, over questions": table["score_low"].le(truth) & table["score_high"].ge(truth),
}
coverage = pd.DataFrame([{"interval at 95 %": name, "models": len(table), "covers": hits.mean()} for name, hits in covered.items()])
nb.save_table("benchmark_arena_coverage", coverage)
assert coverage["covers"].iloc[0] < coverage["covers"].iloc[1]
print("CHECK an interval over battles covers less often than one over questions: pass")
coverage.round(2)

# %% [markdown]
# In these judgments both games of a question say the same, as a judge without position bias would; the more games agree, the less
# an interval over battles is worth. Differences of a point or two between models are inside either.
#
# ## 5. MT-Bench
#
# A rating of 1 to 10 for each of two turns; its score is the mean. -1 stands for a judgment without a rating, and is counted. The form
# that rates one reply alone is the kit's, the paper has none; SmolLM2 is asked for ratings of itself, which shows the way and no more.

# %%
single = judging.FORMS["dialogue-single"]
(row,), (question,) = answers["mt-bench"], questions["mt-bench"]
turns = row["choices"][0]["turns"]
read = [(question.turns[0], turns[0]), ("\n\n".join([question.turns[0], turns[0], question.turns[1]]), turns[1])]
texts = [single.ask(*parts) for parts in read]
ratings = [single.read(reply.text) for (reply,) in policies.sample(policy, texts, greedy, seed=nb.seed)]
rated = [
    {"question_id": 1, "model": "smollm2", "turn": turn, "score": -1 if rating is None else float(rating)}
    for turn, rating in enumerate(ratings, start=1)
]
by_hand = [{"question_id": 2, "model": "by hand", "turn": turn, "score": score} for turn, score in ((1, 8.0), (2, -1))]
table = benchmarks.mt_bench(rated + by_hand)
shown = table[table["model"] == "by hand"].iloc[0]
assert (shown["score"], shown["missing"]) == (8.0, 1)
print("CHECK a missing rating is counted, and in no mean: pass")
HTML(table[["model", "n", "missing", "turn_1", "turn_2", "score"]].to_html(index=False))

# %% [markdown]
# ## What this does not show
#
# No number of the papers: those need their models, and GPT-4 as it was. The prompts of the benchmarks' own judges are theirs and are not
# in the kit; judgments that their code stored are scored as they are, and judges of the kit write the same formats
# (`benchmarks.annotate`, `play`, `rate`) for comparisons of your own.
#
# ## Exercises
#
# 1. Make the judge of section 3 like brevity (a minus before 1.5). Does length control find the truth still?
# 2. Give each question of section 4 two games that disagree. Which interval is right then?
#
# <details><summary>Solutions</summary>
#
# 1. Yes: $\varphi$ has the other sign, and the prediction is at no difference all the same.
# 2. Both: where the games of a question are drawn apart, its battles are nearly independent, but for those that count three times.
#
# </details>

# %%
nb.finish({"raw_error_longer": error.loc["raw", "longer"], "controlled_error_longer": error.loc["length-controlled", "longer"]})
