"""The gate against releases of a known truth: benign ones, the same function, and attacks.

Every release of `data.credit_releases` is put through a check of 1,000 rows with a dictionary that
is trained here. What is due to each was fixed by ablating every column of every row, without a
dictionary; `nbs/benchmarks/gate.ipynb` measures the same on other nets and other dictionaries.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from interpkit.data.credit import credit_rows
from interpkit.data.credit_model import RENAMED_SITE
from interpkit.data.credit_releases import (
    CREDIT_RELEASES,
    HIDDEN_REASONS,
    OTHER_REASONS,
    SAME_FUNCTION,
    credit_release,
)
from interpkit.drift.actions import reasons_changed
from interpkit.drift.comparison import Comparison
from interpkit.drift.measure import measure_all
from interpkit.drift.page import summary_lines
from interpkit.drift.plan import plan_check
from interpkit.drift.printed import bypass, printed
from interpkit.drift.statements import decide
from interpkit.drift.verdict import judge
from interpkit.model.renamed import renamed
from interpkit.training.train import train_dictionary

N = 1000


@cache
def dictionary_of(base):
    "A dictionary of 192 features, on customers whom no check meets."
    rows = credit_rows(6000, "train", seed=5)
    return train_dictionary(credit_release(base), rows, n_features=192, k=16, tokens=200_000)


@cache
def rows_of():
    return credit_rows(N)


@cache
def checked(name):
    "Comparison, plan, table and verdict of a release against its base."
    recipe = CREDIT_RELEASES[name]
    old, new = credit_release(recipe.base), credit_release(name)
    if name == "renamed":
        new = renamed(new, {recipe_site(recipe.base): RENAMED_SITE})
    dictionary = dictionary_of(recipe.base)
    plan, _ = plan_check(old, dictionary, rows_of(), new=dict(name=name), segments=False)
    comparison = Comparison(old, new, dictionary, rows_of(), plan)
    table = measure_all(comparison)
    verdict = judge(decide(table, plan), plan, table)
    return SimpleNamespace(comparison=comparison, plan=plan, verdict=verdict, recipe=recipe)


def recipe_site(base):
    return str(credit_release(base).default_sites[0]).split(":")[0]


def ratio(name, statement, segment=""):
    return checked(name).verdict.statement(statement, segment).ratio


@pytest.mark.parametrize("name", CREDIT_RELEASES)
def test_a_check_says_what_is_due(name):
    found = checked(name)
    assert found.recipe.allows(found.verdict.action), found.verdict.table().to_string()


@pytest.mark.parametrize("name", [*SAME_FUNCTION, "decision x 1.3", "decision + 2"])
def test_what_is_the_same_function_has_the_same_reasons(name):
    assert ratio(name, "inputs") < 1e-3
    assert ratio(name, "decisions") < 1e-3
    assert not reasons_changed(checked(name).verdict.statements)


@pytest.mark.parametrize("name", [*OTHER_REASONS, *HIDDEN_REASONS])
def test_no_attack_is_passed(name):
    assert checked(name).verdict.action not in ("REUSE", "ADAPT")


@pytest.mark.parametrize("name", CREDIT_RELEASES)
def test_shares_are_shares(name):
    bounded = [s for s in checked(name).verdict.statements if s.bounded and s.ratio is not None]
    assert all(0 <= s.lower <= s.ratio <= s.upper <= 1 for s in bounded)


def test_a_change_of_the_alerts_alone_is_seen_by_the_alerts_alone():
    verdict = checked("top tenth imitated").verdict
    whole = [s for s in verdict.statements if not s.segment and not s.watched]
    assert all(s.outcome != "FAIL" for s in whole)
    assert verdict.statement("effect", "alerts").outcome == "FAIL"
    assert checked("top tenth imitated").plan.segments["alerts"] == N // 10


def test_alerts_are_the_highest_decisions_of_the_old_release():
    found = checked("bf16")
    decision = credit_release("v1").run(rows_of()).numpy()
    highest = np.zeros(N, bool)
    highest[np.argsort(-decision)[: N // 10]] = True
    assert (found.comparison.members["alerts"] == highest).all()


def test_what_the_sites_do_not_carry_is_measured():
    seen = checked("wide scrambled").comparison
    assert bypass(seen, seen.new, "new") > 0.2
    through = checked("bf16").comparison
    assert bypass(through, through.new, "new") < 1e-9


def test_a_reason_that_did_not_exist_is_asked_about_by_name():
    "The unit was read by nobody in v1, so no statement of the plan could name it."
    found = checked("dormant third")
    planned = {s.key for s in found.plan.statements}
    emerged = [s for s in found.verdict.statements if s.key not in planned]
    assert 0 < len(emerged) <= found.plan.emerging
    assert any(s.outcome == "FAIL" and s.ratio > 0.9 for s in emerged)


@pytest.mark.parametrize("name", ["poisoned group", "bf16", "scale x 2"])
def test_page_one_can_be_read_out(name):
    found = checked(name)
    numbers = printed(found.comparison, most=20)
    text = "\n".join(summary_lines(found.verdict, numbers, found.plan))
    assert found.verdict.action in text
    if name == "poisoned group":
        largest = numbers["contributions"]["inputs"][""][0]["name"]
        assert largest in text
