"Every family keeps contract and error rates; families that break the contract, each in its way, are refused."

import numpy as np
import pandas as pd
import pytest
from test_drift_verdict import OWN

from interpkit.core.errors import InterpkitError
from interpkit.drift.families import FAMILIES, Activation, rows_of
from interpkit.drift.simulate import check_contract, check_family, error_rates, small_world

WORLD = small_world(300)


class Plain:
    "A family that does everything right; the ones below break it."

    name, question, limit = "plain", "same", 0.25

    def num(self, o, c):
        return np.abs(o.decision_new - o.decision_old)

    def den(self, o, c):
        return np.abs(o.decision_old)

    def measure(self, comparison):
        return rows_of(
            comparison,
            self.name,
            self.num(comparison.observed, comparison),
            self.den(comparison.observed, comparison),
        )


class Signed(Plain):
    def num(self, o, c):
        return o.decision_new - o.decision_old


class Noisy(Plain):
    def num(self, o, c):
        return super().num(o, c) * np.random.default_rng(0).random(len(c.rows))


class Drops(Plain):
    def measure(self, c):
        return super().measure(c).head(-1)


class Doubles(Plain):
    def measure(self, c):
        return pd.concat([super().measure(c), super().measure(c).head(1)])


class Misnames(Plain):
    def measure(self, c):
        return super().measure(c).assign(statement="another")


class Columns(Plain):
    def measure(self, c):
        return super().measure(c).drop(columns="weight")


class NaN(Plain):
    def num(self, o, c):
        return np.where(np.arange(len(c.rows)) == 5, np.nan, super().num(o, c))


class SeesChange(Plain):
    def num(self, o, c):
        return np.abs(o.decision_old)


class NoBase(Plain):
    def den(self, o, c):
        return np.zeros(len(c.rows))


class ForgetsWatched(Activation):
    def measure(self, c):
        return super().measure(c).query("not statement.str.contains(': ')")


class DropsInSegments(Plain):
    def measure(self, c):
        t = super().measure(c)
        return pd.concat(
            [
                t,
                *[
                    t[(c.frame.segment == s).to_numpy()].head(-1).assign(segment=s)
                    for s in ("north", "south")
                ],
            ]
        )


class HidesNaN(Plain):
    def measure(self, c):
        try:
            return super().measure(c)
        except InterpkitError:
            return rows_of(c, self.name, np.zeros(len(c.rows)), np.ones(len(c.rows)))


class HeavyTailed(Plain):
    "One sequence in 300 holds almost all of the change: the normal interval does not know it before it is drawn."

    def num(self, o, c):
        return np.where(c.rows.sequence_id == "s7", 1e3, 1e-3) * (
            np.abs(o.decision_new - o.decision_old) > 0
        )


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
    with pytest.raises(InterpkitError) as e:
        check_family(family(), WORLD, checks=20)
    assert e.value.code == 65 and BREAKS[family] in str(e.value)


def test_a_family_with_too_many_errors_is_refused():
    with pytest.raises(InterpkitError, match="at most 1% of checks"):
        check_family(HeavyTailed(), WORLD, checks=3000)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_the_four_families_keep_contract_and_error_rates(family):
    found = check_family(family(), WORLD, checks=3000)
    assert found.empty == (family.question == "valid") or (found.checks == 3000).all()
    assert (found.false_fail_upper <= 0.01).all() and (found.false_pass_upper <= 0.01).all()


def test_a_teams_own_family_keeps_them_too(module):
    found = check_family(f"{module(OWN)}:Mine", WORLD, checks=3000)
    assert found.n.tolist() == [200, 1000] and (
        found[["false_fail_upper", "false_pass_upper"]] <= 0.01
    ).all(axis=None)


def test_error_rates_count_what_is_wrong_at_the_limit():
    "Where groups are all alike, every check finds exactly the limit: nothing is shown."
    rows = pd.DataFrame(dict(group=range(100), weight=1.0, numerator=0.1, denominator=1.0))
    found = error_rates(rows, 0.25, sizes=(100,), checks=50)
    assert (
        found.false_fail.tolist() == [0.0]
        and found.false_pass.tolist() == [0.0]
        and found.false_fail_upper[0] == pytest.approx(1 - 0.025 ** (1 / 50))
    )
    rng = np.random.default_rng(0)
    rare = rows.assign(
        numerator=(np.arange(100) == 0) * 1.0
    )  # in more than a third of the checks this one is not drawn
    assert error_rates(rare, 0.25, sizes=(100,), checks=400).false_pass[0] == pytest.approx(
        np.exp(-1), abs=0.08
    )


def test_contract_without_simulation_runs_on_a_world_of_its_own():
    check_contract(Plain())
