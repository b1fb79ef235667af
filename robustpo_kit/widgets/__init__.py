"""Things to move: parts that draw in the browser, mounted in JupyterLab and on the static site.

`static/NAME.js` holds a part's mathematics and drawing, `states` the numbers that it starts from,
`figures` the picture that stands for it where nobody looks; `CATALOGUE` names them.
"""

from robustpo_kit.widgets.catalogue import CATALOGUE, Part, show
from robustpo_kit.widgets.live import toy_live, train_toy
from robustpo_kit.widgets.pair import pair_state, token_table

__all__ = ["CATALOGUE", "Part", "pair_state", "show", "token_table", "toy_live", "train_toy"]
