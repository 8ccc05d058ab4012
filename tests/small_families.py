"A team's own family, as text of a module that a test writes into a folder of its own."

import uuid
from collections.abc import Callable
from pathlib import Path

OWN = """
import numpy as np
from interpkit.drift.families import rows_of


class Mine:
    name, question, limit = "mine", "same", 0.25

    def measure(self, comparison):
        was, now = comparison.observed.decision_old, comparison.observed.decision_new
        return rows_of(comparison, self.name, np.abs(now - was), np.abs(was))
"""


def writer(folder: Path, monkeypatch) -> Callable[[str], str]:
    "Writes a text as a module that can be imported until the test ends; the module's name."
    name = f"bank_{uuid.uuid4().hex[:8]}"
    monkeypatch.syspath_prepend(folder)

    def write(text: str) -> str:
        (folder / f"{name}.py").write_text(text)
        return name

    return write
