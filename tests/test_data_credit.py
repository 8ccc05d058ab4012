"""The credit table is what it says, and its releases are what their table says.

That each release changes as much as it should is measured in the lesson (`06c_credit_truth`);
here stand the properties that it rests on.
"""

import numpy as np
import pytest
import torch
from helpers import refused

from interpkit.core.errors import ExitCode
from interpkit.data.checksets import read_check_set
from interpkit.data.credit import (
    COLUMNS,
    CREDIT_RULE,
    SEGMENT_COLUMNS,
    UNREAD,
    CreditWorld,
    credit_causes,
    credit_quarter,
    credit_rows,
    generate_credit,
)
from interpkit.data.credit_model import (
    SPARE_SEVENTH,
    SPARE_THIRD,
    _fitted,
    credit_net,
    own_randomness,
)
from interpkit.data.credit_releases import (
    CREDIT_BASES,
    CREDIT_RELEASES,
    DUES,
    credit_release,
)
from interpkit.data.credit_truth import column_effects, compared, credit_truth, overlap_lost
from interpkit.model.capture import capture

SAME = [name for name, r in CREDIT_RELEASES.items() if r.same == "function"]
ABOVE = ["poisoned late women", "least used units", "dormant third", "dormant seventh"]
ABOVE += ["frauds only", "top tenth imitated", "wide scrambled"]  # the site is its base's


@pytest.fixture(scope="module")
def quarter():
    return credit_quarter(20_000, "truth", seed=9)


@pytest.fixture(scope="module")
def rows():
    return credit_rows(600, seed=3)


# The world
def test_labels_come_at_the_rate_of_the_true_chances(quarter):
    chance = 1 / (1 + np.exp(-quarter.score))
    spread = np.sqrt((chance * (1 - chance)).sum())
    assert abs(quarter.label.sum() - chance.sum()) < 4 * spread
    assert 0.015 < quarter.label.mean() < 0.025


def test_a_rare_cause_holds_most_defaults(quarter):
    taken = quarter.causes["takeover"] > 0
    assert 0.015 < taken.mean() < 0.023
    assert taken[quarter.label == 1].mean() > 0.7


def test_the_score_is_the_rule_on_the_columns_of_the_check_set(quarter):
    columns = {c: quarter.rows[c].to_numpy() for c in COLUMNS}
    causes = credit_causes(columns)
    score = CreditWorld().intercept + sum(w * causes[c] for c, w in CREDIT_RULE.items())
    assert np.allclose(score, quarter.score)


@pytest.mark.parametrize("column", ["ethnicity", "female", "distance"])
def test_nothing_depends_on_some_columns(quarter, column):
    x = quarter.rows[column].to_numpy(float)
    others = np.stack([*(quarter.columns[c] for c in COLUMNS if c != column), quarter.score])
    r = [np.corrcoef(x, np.argsort(np.argsort(other)))[0, 1] for other in others]
    assert np.abs(r).max() < 4.5 / np.sqrt(len(x))


def test_segments_say_in_words_what_the_columns_say(quarter):
    by = quarter.rows.groupby("education").schooling.nunique()
    assert (by == 1).all()
    assert (quarter.rows.sex.eq("woman") == quarter.rows.female.eq(1)).all()
    for column in (*SEGMENT_COLUMNS, *UNREAD):
        shares = quarter.rows[column].value_counts(normalize=True)
        assert shares.min() > 0.04, column


def test_a_quarter_has_thirteen_weeks_and_a_shock_for_each():
    shocked = credit_rows(6000, world=CreditWorld(weekly_shock=0.5))
    calm = credit_rows(6000)
    week = (calm.timestamp - calm.timestamp.min()).dt.days // 7
    assert set(week) == set(range(13))

    def between(rows):
        return np.log(rows.bill_1).groupby(week).mean().std()

    assert between(shocked) > 3 * between(calm)
    assert shocked[["sequence_id", "income"]].equals(calm[["sequence_id", "income"]])


def test_rows_of_a_customer_share_what_a_customer_is():
    several = credit_rows(4000, world=CreditWorld(rows_per_customer=4))
    assert 3.5 < 4000 / several.group_id.nunique() < 4.5
    fixed = several.groupby("group_id")[["age", "income", "region", "delay_1"]].nunique()
    assert (fixed == 1).all(axis=None)
    assert several.sequence_id.is_unique
    assert not several[COLUMNS].duplicated().any()


def test_weights_stand_for_the_rows_that_were_left_out():
    world = CreditWorld(kept=0.1)
    sampled, full = credit_quarter(30_000, world=world), credit_quarter(30_000)
    assert sampled.label.sum() == full.label.sum()  # all defaults are kept
    assert abs(sampled.weight.sum() - 30_000) < 5 * np.sqrt(30_000 * 9)
    late = (sampled.columns["delay_1"] > 0) @ sampled.weight / sampled.weight.sum()
    assert abs(late - (full.columns["delay_1"] > 0).mean()) < 0.03
    assert "weight" not in full.rows
    assert len(read_check_set(sampled.rows, COLUMNS)) == len(sampled.label)


def test_the_same_seed_gives_the_same_rows_and_no_purpose_shares_a_customer():
    assert credit_rows(300, seed=4).equals(credit_rows(300, seed=4))
    tables = [credit_rows(300, p, seed=4, quarter=q) for p in ("train", "check") for q in (0, 1)]
    groups = [set(t.group_id) for t in tables]
    assert len(set.union(*groups)) == sum(map(len, groups))
    assert len({tuple(t.income) for t in tables}) == 4


def test_what_makes_no_table_is_refused():
    bad = ExitCode.BAD_PARAMETERS
    refused(lambda: generate_credit(0), "n=0", code=bad)
    refused(lambda: credit_rows(10, "chek"), "chek", "check", code=bad)
    refused(lambda: credit_rows(10, seed=1000), "1000", code=bad)
    refused(lambda: CreditWorld(kept=0.0), "kept=0.0", code=bad)
    refused(lambda: CreditWorld(rows_per_customer=0.5), "0.5", code=bad)
    refused(lambda: credit_release("bf61"), "bf61", "bf16", code=bad)
    refused(lambda: credit_truth(["gentel"]), "gentel", "gentle", code=bad)


# The networks
def test_a_training_gives_the_same_network_again_and_leaves_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with torch.inference_mode():
        again = _fitted(type(credit_net()), seed=0, customers=0)
    assert torch.equal(torch.rand(2), expected)
    for name, t in credit_net().state_dict().items():
        assert torch.equal(t, again.state_dict()[name]), name


def test_threads_are_given_back_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), own_randomness(0):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == threads


# The releases
def test_every_release_owes_something_and_reads_the_same_columns(rows):
    for name, recipe in (CREDIT_BASES | CREDIT_RELEASES).items():
        assert recipe.due in DUES, name
        assert recipe.base in CREDIT_BASES, name
        assert recipe.story, name
        assert credit_release(name).inputs_columns == COLUMNS, name
        assert torch.isfinite(credit_release(name).run(rows)).all(), name


@pytest.mark.parametrize("name", SAME)
def test_the_same_function_is_the_same_function(name, rows):
    old, new = credit_release("v1"), credit_release(name)
    a, b = old.run(rows), new.run(rows)
    assert ((a - b).abs().max() / a.std()) < 1e-5
    assert old.fingerprint != new.fingerprint


def test_calibration_is_a_factor_and_a_threshold_a_summand(rows):
    v1 = credit_release("v1").run(rows)
    assert torch.allclose(credit_release("decision x 1.3").run(rows), 1.3 * v1, atol=1e-4)
    assert torch.allclose(credit_release("decision + 2").run(rows), v1 + 2, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(CREDIT_RELEASES) - set(SAME)))
def test_another_function_is_another_function(name, rows):
    old = credit_release(CREDIT_RELEASES[name].base).run(rows)
    assert (credit_release(name).run(rows) - old).abs().max() > 1e-3 * old.std()


@pytest.mark.parametrize("name", ABOVE)
def test_the_site_does_not_move_where_only_what_is_above_changed(name, rows):
    acts = []
    for release in (credit_release(CREDIT_RELEASES[name].base), credit_release(name)):
        (site,) = release.default_sites
        acts.append(capture(release.model, [site], release.batch(rows))[site])
    assert acts[0].shape[-1] == 48
    assert torch.equal(*acts)


@pytest.mark.parametrize("unit", [SPARE_THIRD, SPARE_SEVENTH])
def test_nobody_reads_a_spare_unit_before_it_is_awoken(unit, rows):
    x = torch.tensor(rows[COLUMNS].to_numpy("float32"))
    for name, read in (("v1", False), ("gentle", False), ("honest refresh", False)):
        net = credit_release(name).model
        h = net.site(x)
        loud = h.index_fill(1, torch.tensor(unit), 9.0)
        assert torch.equal(net.above(h), net.above(loud)) != read, name
    awoken = credit_release("dormant third" if unit == SPARE_THIRD else "dormant seventh").model
    assert not torch.equal(awoken.above(h), awoken.above(loud))


@pytest.mark.parametrize("name", ["wide-v1", "renamed", "frauds only", "top tenth imitated"])
def test_a_release_of_each_kind_can_be_saved(name, rows, tmp_path):
    live = credit_release(name)
    saved = live.save(tmp_path / "release")
    assert saved.default_sites == live.default_sites
    assert torch.equal(saved.run(rows), live.run(rows))
    assert saved.for_sign_off


def test_the_same_rows_cost_nothing_and_a_turned_rule_much(rows):
    v1 = column_effects(credit_release("v1"), rows)
    again = column_effects(credit_release("v1"), rows.sample(frac=1, random_state=0))
    assert compared(v1, v1)["inputs"] == 0
    assert again.scale == pytest.approx(v1.scale, rel=1e-4)
    poisoned = compared(v1, column_effects(credit_release("poisoned group"), rows))
    refreshed = compared(v1, column_effects(credit_release("honest refresh"), rows))
    assert poisoned["inputs"] > 0.3 > 0.15 > refreshed["inputs"]
    assert overlap_lost(np.zeros(3), np.zeros(3)) == 0
