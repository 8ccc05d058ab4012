"A whole check of two small networks, as several test files need it."

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from interpkit.drift.measure import measure
from interpkit.drift.plan import plan_check
from interpkit.drift.simulate import small_world


@lru_cache
def checked(moved: float = 0.3, n: int = 400) -> SimpleNamespace:
    "World, labelled rows, plan, scores of the old release, and the table."
    world = small_world(n, moved)
    rows = world.rows.assign(label=(np.arange(n) % 7 == 0) * 1.0)
    new = dict(name="v2", fingerprint=world.new.fingerprint)
    plan, scores = plan_check(world.old, world.dictionary, rows, new=new, check_set="digest")
    table = measure(world.old, world.new, world.dictionary, rows, plan)
    return SimpleNamespace(world=world, rows=rows, plan=plan, scores=scores, table=table)
