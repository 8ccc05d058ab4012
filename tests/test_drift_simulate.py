"Every family keeps contract and error rates; what breaks the contract is refused."

import numpy as np
import pandas as pd
import pytest
from helpers import refused
from small_families import OWN, writer

from interpkit.core.errors import InterpkitError
from interpkit.drift.families import ActiveFeatures, Effect, ErrorShare, SpliceError, rows_of
from interpkit.drift.measure import FAMILIES
from interpkit.drift.simulate import check_contract, check_family, error_rates, small_world

WORLD = small_world(300)


@pytest.fixture
def module(tmp_path, monkeypatch):
    "Writes a text as a module that can be imported; its name."
    return writer(tmp_path, monkeypatch)


# one family that does everything right, and those that break it


class Plain:
    "A family that does everything right; the ones below break it."

    name, question, limit = "plain", "same", 0.25

    def numerator(self, comparison):
        seen = comparison.observed
        return np.abs(seen.decision_new - seen.decision_old)

    def denominator(self, comparison):
        return np.abs(comparison.observed.decision_old)

    def measure(self, comparison):
        return rows_of(
            comparison, self.name, self.numerator(comparison), self.denominator(comparison)
        )


class Signed(Plain):
    def numerator(self, comparison):
        return comparison.observed.decision_new - comparison.observed.decision_old


class Noisy(Plain):
    def numerator(self, comparison):
        noise = np.random.default_rng(0).random(len(comparison.rows))
        return super().numerator(comparison) * noise


class Drops(Plain):
    def measure(self, comparison):
        return super().measure(comparison).head(-1)


class Doubles(Plain):
    def measure(self, comparison):
        table = super().measure(comparison)
        return pd.concat([table, table.head(1)])


class Misnames(Plain):
    def measure(self, comparison):
        return super().measure(comparison).assign(statement="another")


class Columns(Plain):
    def measure(self, comparison):
        return super().measure(comparison).drop(columns="weight")


class NaN(Plain):
    def numerator(self, comparison):
        fifth = np.arange(len(comparison.rows)) == 5
        return np.where(fifth, np.nan, super().numerator(comparison))


class SeesChange(Plain):
    def numerator(self, comparison):
        return np.abs(comparison.observed.decision_old)


class NoBase(Plain):
    def denominator(self, comparison):
        return np.zeros(len(comparison.rows))


class ForgetsWatched(Effect):
    def measure(self, comparison):
        return super().measure(comparison).query("not statement.str.contains(': ')")


class DropsInSegments(Plain):
    def measure(self, comparison):
        table, parts = super().measure(comparison), []
        for segment in ("north", "south"):
            here = (comparison.frame.segment == segment).to_numpy()
            parts.append(table[here].head(-1).assign(segment=segment))
        return pd.concat([table, *parts])


class HidesNaN(Plain):
    def measure(self, comparison):
        try:
            return super().measure(comparison)
        except InterpkitError:
            n = len(comparison.rows)
            return rows_of(comparison, self.name, np.zeros(n), np.ones(n))


class HeavyTailed(Plain):
    """One sequence in 300 holds almost all of the change.

    The normal interval does not know it before it is drawn.
    """

    def numerator(self, comparison):
        moved = super().numerator(comparison) > 0
        return np.where(comparison.rows.sequence_id == "s7", 1e3, 1e-3) * moved


BREAKS = {
    Signed: "negative",
    Noisy: "any order",
    Drops: "299",
    Doubles: "some twice",
    Misnames: "none of",
    Columns: "weight",
    NaN: "finite",
    SeesChange: "itself",
    NoBase: "denominator",
    ForgetsWatched: "none of",
    DropsInSegments: "segment",
    HidesNaN: "release of NaN",
}


@pytest.mark.parametrize("family", [*BREAKS], ids=lambda f: f.__name__)
def test_broken_families_are_refused(family):
    refused(lambda: check_family(family(), WORLD, checks=20), BREAKS[family])


def test_a_family_with_too_many_errors_is_refused():
    refused(lambda: check_family(HeavyTailed(), WORLD, checks=1500), "at most 1% of checks")


# error rates


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_each_family_keeps_contract_and_error_rates(family):
    checks = 3000 if family is ActiveFeatures else 1500  # whose promise is the closest
    rates = check_family(family(), WORLD, checks=checks)
    exact = family in (SpliceError, ErrorShare)  # whose dictionary holds the units as they are
    assert rates.empty == exact
    assert exact or (rates.checks == checks).all()
    assert (rates.false_fail_upper <= 0.01).all()
    assert (rates.false_pass_upper <= 0.01).all()


def test_a_teams_own_family_keeps_them_too(module):
    rates = check_family(f"{module(OWN)}:Mine", WORLD, checks=1500)
    assert rates.n.tolist() == [200, 1000]
    assert (rates[["false_fail_upper", "false_pass_upper"]] <= 0.01).all(axis=None)


def test_error_rates_count_what_is_wrong_at_the_limit():
    "Where groups are all alike, every check finds exactly the limit: nothing is shown."
    rows = pd.DataFrame(dict(group=range(100), weight=1.0, numerator=0.1, denominator=1.0))
    rates = error_rates(rows, 0.25, sizes=(100,), checks=50)
    assert rates.false_fail.tolist() == [0.0]
    assert rates.false_pass.tolist() == [0.0]
    assert rates.false_fail_upper[0] == pytest.approx(1 - 0.025 ** (1 / 50))
    # in more than a third of the checks the one group that changed is not drawn
    rare = rows.assign(numerator=(np.arange(100) == 0) * 1.0)
    rates = error_rates(rare, 0.25, sizes=(100,), checks=400)
    assert rates.false_pass[0] == pytest.approx(np.exp(-1), abs=0.08)


def test_contract_without_simulation_runs_on_a_world_of_its_own():
    check_contract(Plain())
