"""Many clients trained as one computation, for ordinary networks, losses and step hooks.

How it works: clients are folded into the batch axis (`perclient.py`, `rules.py`), a gradient goes straight to where
it is needed (`sinks.py`, `lazy.py`), steps are recognised rather than declared (`affine.py`; others in `adam.py` and
`explicit.py`), and results stay deferred (`rows.py`). What cannot be stacked raises `NotStackable`; `probe` finds out
before it matters.
"""

from .chunk import choose_chunk
from .fold import NotStackable
from .loop import train_stacked
from .probe import best_path, probe
from .rows import Row, add_rows

__all__ = ["NotStackable", "Row", "add_rows", "best_path", "choose_chunk", "probe", "train_stacked"]
