"""An audit as one HTML page that needs nothing else: no network, no script, figures inside."""

import base64
import html
import io
import shlex
from string import Template

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustpo_kit import plots
from robustpo_kit.auditing.advice import BY_LOT, REVERSED, Facts, how_found
from robustpo_kit.auditing.report import Audit
from robustpo_kit.data import PreferenceSet

ROWS_SHOWN, TEXT_SHOWN = 12, 280  # of a table; characters of a response
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --line: #d8d8d8; --soft: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --line: #3a3e44; --soft: #1f2226; }
  img { filter: invert(0.91) hue-rotate(180deg); }
}
body { margin: 0 auto; max-width: 52rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.87rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: normal; }
ol li { margin-bottom: 0.7rem; } .why { opacity: 0.8; font-size: 0.9rem; }
.grade { border: 1px solid var(--line); border-radius: 0.6rem; padding: 0 0.5rem;
  font-size: 0.78rem; white-space: nowrap; }
pre, blockquote { background: var(--soft); padding: 0.7rem; margin: 0.4rem 0; overflow-x: auto;
  white-space: pre-wrap; }
"""
PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Audit of $name</title><style>$style</style></head><body>
<h1>Audit of $name</h1>
<p>$lead</p>
$body
</body></html>
""")
ABOUT = {  # heading, what the table shows
    "schema": ("What the file holds", ""),
    "lengths": (
        "Lengths",
        "A word stands between blanks; of scripts without blanks each character counts as one.",
    ),
    "duplicates": (
        "Repeats and contradictions",
        "Rows that say what an earlier row says: <em>exact</em>; <em>contradiction</em>, the same "
        "two responses with the opposite label; <em>near</em>, nearly the same words.",
    ),
    "leaks": (
        "Prompts and groups shared with the held-out file",
        "What <code>train --heldout</code> refuses: a prompt, letter case and blanks aside, as "
        "text, message or transcript; a <em>group</em>, as another turn of one conversation.",
    ),
    "models": (
        "What gives the labels away",
        "How often a linear model finds the preferred response on prompts it did not see, by what "
        "it sees. What <em>length</em> or <em>form</em> alone can do is a shortcut; "
        "<em>best</em> is the view of least held-out NLL (0.693 is knowing nothing); penalty: of "
        "the ridge, by cross-validation.",
    ),
    "positions": ("Where the best response stands", "Share of rows with the best reward there."),
    "flip_rate": (
        "Labels that may be turned round",
        "A model's mistakes and flipped labels look alike. The <em>bound</em> holds whatever the "
        "model is worth, if fewer than half of the labels are flipped, and by lot; "
        "<em>trusted</em> compares with pairs whose labels are known, <em>checked</em> counts "
        "among those that are the file's own, drawn by lot. <em>Confident learning</em> counts "
        "all mistakes of the model as flips.",
    ),
    "detectability": (
        "How well flips can be found here",
        "Labels of this very file were turned by lot and sought again. <em>lift</em> is average "
        "precision over chance (1; at most 1 / rate), <em>length_lift</em> that of length alone, "
        "<em>precision_top</em> the share of turned labels in the most suspect tenth (the rate by "
        "chance). The file's own flips count against it.",
    ),
    "sources": ("Who wrote what", ""),
    "contamination_rate": (
        "Golden slots that hold something else",
        "By a classifier of the trusted rows: the share of golden slots that look like each other "
        "source, with the prior of these rows.",
    ),
    "strength": (
        "Strength of a robust objective",
        "What a wish comes to on one batch before training: <code>ess=0.7</code>, that 70 % of a "
        "batch drive the step, as lambda; <code>spread=0.2</code>, that target margins vary by a "
        "fifth, as tau. In training the wish itself can stand in the objective.",
    ),
}

SHOWN = {  # columns of tables, as the page calls them
    "models": {"low": "accuracy_low", "high": "accuracy_high", "chosen": "best"}
    | {"strength": "penalty", "nll": "held-out NLL"}
}
NEXT = """\
robustpo calibrate {file} --golden chosen --out runs/calibrated      # c, h and rewards, for DoRA
robustpo train --data {file} --heldout 0.1 --model MODEL --objective "dpo(beta=0.1)" --out runs/dpo
"""
NEXT_UNRANKED = """\
robustpo calibrate {file} --golden COLUMN --reward MODEL --out runs/calibrated  # ranks the replies
robustpo train --data runs/calibrated/rows.jsonl --heldout 0.1 --model MODEL \\
    --objective "dpo(beta=0.1)" --out runs/dpo
"""


def page(audit: Audit, cost: str = "", file: str = "") -> str:
    """The whole page.

    Args:
        audit: of a file.
        cost: what training on it would take, in lines.
        file: as a command names it (default: the name of the rows).
    """
    parts = [_advice(audit), _notes(audit)]
    for name, (heading, about) in ABOUT.items():
        if name in audit.tables and not (name == "positions" and audit.tables[name].empty):
            table = _table(audit.tables[name], name)
            parts.append(f"<h2>{heading}</h2>\n<p>{about}</p>\n{_figure(audit, name)}\n{table}")
    if len(audit.suspects):
        parts.append(_suspects(audit.suspects))
    commands = NEXT_UNRANKED if audit.facts.unranked else NEXT
    commands = commands.format(file=shlex.quote(file or audit.name))
    parts.append(f"<h2>Next</h2>\n<pre>{html.escape(commands)}</pre>")
    if cost:
        parts.append(f"<h2>What training would take</h2>\n<pre>{html.escape(cost)}</pre>")
    name, first = html.escape(audit.name), html.escape(lead(audit.facts))
    return PAGE.substitute(name=name, style=STYLE, lead=first, body="\n".join(parts))


def lead(facts: Facts) -> str:
    """The findings in a paragraph."""
    said = [REVERSED.capitalize()] if facts.reversed else []
    said += [
        f"{facts.rows:,} rows; {facts.repeats} repeat an earlier one word for word, "
        f"{facts.contradictions} contradict one."
    ]
    if facts.scored_against:
        count = f"{facts.scored_against:,} of {facts.scored:,} scored pairs"
        said.append(f"{count} score the rejected reply above the chosen one.")
    if facts.flips is not None and facts.model is not None:
        said.append(f"A model of the text finds {facts.model.value:.0%} of held-out labels.")
        rate = f"At most {facts.flips.high:.0%} of labels are flipped, {BY_LOT}"
        if facts.flips_by != "bound":
            rate = f"{facts.flips.low:.0%} to {facts.flips.high:.0%} of labels are flipped"
        said.append(f"{rate} (95 %).")
    if facts.lift is not None:
        said.append(f"Of labels turned here by lot, a fifth, {how_found(facts)}.")
    return " ".join(said)


def _advice(audit: Audit) -> str:
    items = [
        f"<li>{html.escape(line.advice)} <span class='grade'>{line.grade}</span>"
        f"<div class='why'>{html.escape(line.because)}</div></li>"
        for line in audit.advice()
    ]
    return "<h2>What to do</h2>\n<ol>\n" + "\n".join(items) + "\n</ol>"


def _notes(audit: Audit) -> str:
    items = "\n".join(f"<li>{html.escape(note)}</li>" for note in audit.notes)
    return f"<h2>What was left out</h2>\n<ul>\n{items}\n</ul>" if items else ""


def _table(table: pd.DataFrame, name: str) -> str:
    """The first rows of a table; all of them are in NAME.csv."""
    if table.empty:
        return "<p>None.</p>"
    shown = _folded(table.head(ROWS_SHOWN).rename(columns=SHOWN.get(name, {}))).to_html(
        index=False, border=0, na_rep="", float_format=lambda value: f"{value:.3g}"
    )
    more = ""
    if len(table) > ROWS_SHOWN:
        more = f"<p class='why'>The first {ROWS_SHOWN} of {len(table)} rows; all: {name}.csv.</p>"
    return f"<div class='wide'>{shown}</div>{more}"


def _folded(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with "value [low, high]" in one column, for VALUE_low and VALUE_high."""
    folded = table.copy()
    for name in table:
        ends = [f"{name}_low", f"{name}_high"]
        if set(ends) <= set(table):
            folded[name] = [
                f"{value:.3g} [{low:.3g}, {high:.3g}]" if pd.notna(low) else f"{value:.3g}"
                for value, low, high in table[[name, *ends]].itertuples(index=False)
            ]
            folded = folded.drop(columns=ends)
    return folded


def _draw_models(tables: dict[str, pd.DataFrame], ax: Axes) -> str:
    """The accuracy of every view of the pairs; says which is best."""
    table = tables["models"]
    words = "held-out labels found (0.5: by lot)"
    plots.bars_with_ci(table, ax, name="view", value="accuracy", xlabel=words, reference=0.5)
    best = table.sort_values("accuracy").iloc[-1]
    return f"Best view: {best['view']} finds {best['accuracy']:.0%} of held-out labels"


def _draw_detectability(tables: dict[str, pd.DataFrame], ax: Axes) -> str:
    """Precision over chance by rate; says it at the highest."""
    table = tables["detectability"]
    parts = []
    for column, label in (("lift", "chosen view"), ("length_lift", "length alone")):
        names = {f"{column}_{end}": end for end in ("low", "high")} | {column: "value"}
        parts.append(table[["rate", *names]].rename(columns=names).assign(of=label))
    plots.lines_with_bands(pd.concat(parts), ax, x="rate", y="value", by="of", named=True)
    plots.reference_line(ax, 1.0, upright=False)
    ax.set(xlabel="share of labels turned round", ylabel="precision over chance")
    last = table.sort_values("rate").iloc[-1]
    return f"With {last['rate']:.0%} turned, precision is {last['lift']:.1f} times chance"


def _draw_flip_rate(tables: dict[str, pd.DataFrame], ax: Axes) -> str:
    """How probable the labels are as given; says how many are improbable."""
    agreement = tables["pairs"]["agreement"]
    ax.hist(agreement, bins=25, range=(0, 1), color=plots.PALETTE[0])
    ax.set(xlabel="probability of the label, by a model that did not see it", ylabel="pairs")
    return f"{(agreement < 0.5).mean():.0%} of labels are less probable than their opposite"


DRAWN = {
    "models": _draw_models,
    "detectability": _draw_detectability,
    "flip_rate": _draw_flip_rate,
}


def _figure(audit: Audit, name: str) -> str:
    """The picture beside a table, where it has one."""
    if name not in DRAWN:
        return ""
    file = io.BytesIO()
    with plots.styled(), rc_context({"svg.fonttype": "none"}):
        drawn = Figure(figsize=(6.0, 3.0), layout="constrained")
        words = DRAWN[name](audit.tables, drawn.subplots())
        note = f"n = {len(audit.tables['pairs'])} pairs; 95 % intervals"
        plots.head(drawn, words, note)
        drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    code = base64.b64encode(file.getvalue()).decode()
    return f"<img alt='{name}' src='data:image/svg+xml;base64,{code}'>"


def _suspects(pairs: PreferenceSet) -> str:
    """Texts of the most suspect pairs, folded: some data sets are not pleasant to read."""
    items = []
    for row in pairs:
        preferred, other = map(_short, row.responses)
        items.append(
            f"<p>row {html.escape(row.row_id)}</p><blockquote>… {_short(row.prompt, end=True)}"
            f"</blockquote><blockquote>preferred: {preferred}</blockquote>"
            f"<blockquote>other: {other}</blockquote>"
        )
    about = "The model disagrees most with these labels. Its own errors are among them."
    return (
        f"<h2>Pairs to read first</h2><p>{about}</p><details><summary>{len(pairs)} pairs, as they "
        f"stand in the file</summary>{''.join(items)}</details>"
    )


def _short(text: str, *, end: bool = False) -> str:
    """The beginning, or the end, of a text, escaped."""
    text = text.strip()
    if len(text) > TEXT_SHOWN:
        text = text[-TEXT_SHOWN:] if end else text[:TEXT_SHOWN] + " …"
    return html.escape(text)
