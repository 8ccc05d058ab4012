"The ladder: exact where nothing was learnt anew, honest where nothing works, within its budget."

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import small_updates as small
import torch
from helpers import refused
from small_wirings import SPECS, made, release, rows

from interpkit.adapt.budget import Budget, Clock, Cost
from interpkit.adapt.judged import asked_of, judge, with_first
from interpkit.adapt.ladder import adapt
from interpkit.adapt.lineage import origins
from interpkit.adapt.paired import paired_activations
from interpkit.adapt.refit import refit
from interpkit.adapt.steps import Climb, measured_rates, planned_cost
from interpkit.data.demo import demo_folder, demo_rows
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.evaluate import evaluate
from interpkit.dictionary.validity import verify_canary
from interpkit.drift.limits import Limits
from interpkit.gate.askable import refuse_rows_it_learned
from interpkit.model.releases import Release


@lru_cache
def traffic():
    return small.rows(2400, 5)


LOOSE = dict(splice_error=0.25)  # its own among alerts is 9 to 11 %, by the instruction set


def followed(new, **kwargs):
    how = dict(budget=3600, limits=LOOSE) | kwargs
    return adapt(small.old(), new, small.trained(), traffic(), **how)


# an update that changes no decision


@pytest.mark.parametrize("name", small.CHANGES)
def test_what_moves_a_site_and_no_decision_is_followed_exactly(name):
    new = small.release(name, small.CHANGES[name], shift=1.0)
    found = followed(new, steps=("reuse", "closed form"))
    assert found.step == "closed form"
    table = found.table().set_index("step")
    for figure in ("splice_error", "error_share", "fvu"):
        own, reused, now = (table[figure][s] for s in ("own release", "reuse", "closed form"))
        assert now - own < max(0.01 * (reused - own), 0.01 * own), figure
    assert abs(table.l0["closed form"] / table.l0["own release"] - 1) < 0.02
    known = found.identity.table[found.identity.table.status != "undetermined"]
    assert (known.status == "preserved").all()
    assert found.identity.kept > 0.95
    assert found.identity.decoys.upper.iloc[-1] < 0.07  # none of fewer decoys says less
    verify_canary(new, found.dictionary)
    assert found.dictionary.labels[0] in (small.trained().labels[0], "unnamed feature 0")


def test_a_refitted_decoder_on_a_rotated_release_is_a_false_friend():
    "It explains the site, and even decides well; the number of its active features gives it away."
    d, new = small.trained(), small.release("rotated", small.CHANGES["rotated"])
    (site,) = d.sites
    both = paired_activations(small.old(), new, traffic(), [site])
    weights, _ = refit(d, both.new, both.held(site))
    friend = replace(d, weights=weights)
    test = small.rows(800, 6)
    own, judged = judge(small.old(), d, test), judge(new, friend, test)
    asked = asked_of(judged, own, test, Limits())
    assert judged.fvu < 0.3 and judged.l0[0] > 1.5 * own.l0[0]
    wrong = set(asked.asked[~asked.holds])
    assert {"active features", "L0, away from own"} <= wrong


def test_several_updates_in_a_row_lead_back_to_the_first():
    d, before = small.trained(), small.old()
    for i, name in enumerate(("rotated", "permuted")):
        new = small.release(f"{name} {i}", small.turn(i + 5))
        roomy = LOOSE | dict(allowance=0.08)  # 800 rows leave a wide interval
        found = adapt(before, new, d, small.rows(2400, 20 + i), budget=3600, limits=roomy)
        assert found.step == "closed form"
        before, d = new, found.dictionary
    assert [entry["step"] for entry in d.lineage] == ["closed form"] * 2
    assert d.lineage[0]["parent"] == small.trained().fingerprint
    assert d.lineage[1]["parent_release"] == "rotated 0"
    first = origins(d)
    assert (first[first >= 0] == np.flatnonzero(first >= 0)).all() and (first >= 0).sum() > 16


def test_what_a_chain_may_lose_is_counted_from_its_beginning():
    found = followed(small.fine_tuned(0.02))
    measured = small.trained().validity["measured"]
    first = {name: measured[name] for name in ("splice_error", "error_share", "l0")}
    assert found.step == "reuse" and found.dictionary.training["first"] == first
    again = with_first(replace(found.dictionary, validity=dict(measured=dict(first, l0=99.0))))
    assert again.training["first"] == first
    rows = small.rows(1200, 6)
    own, room = judge(small.old(), small.trained(), rows), Limits(splice_error=0.4, error_share=0.5)
    assert own.first is None and asked_of(own, own, rows, room).holds.all()
    for name, now in (("l0", own.l0.mean() / 1.6), ("error_share", own.error_share - 0.06)):
        drifted = replace(own, first=first | {name: now})
        asked = asked_of(drifted, drifted, rows, room)
        wrong = asked[~asked.holds & (asked.segment == "")].asked
        assert wrong.tolist() == [{"l0": "active features"}.get(name, "error share")]


# updates that change decisions


def test_a_small_update_is_reused_and_the_dictionary_stays_as_it_is():
    found = followed(small.fine_tuned(0.02))
    assert found.step == "reuse" and found.identity is None and len(found.rungs) == 1
    assert found.dictionary.fingerprint == small.trained().fingerprint
    verify_canary(small.fine_tuned(0.02), found.dictionary)  # so that the next update can follow


def test_the_demo_is_followed_by_polish_and_keeps_who_it_is():
    old, new = (Release.load(demo_folder() / "releases" / n) for n in ("v1", "v2"))
    d = Dictionary.load(demo_folder() / "dictionary")
    steps = ("reuse", "polish")
    found = adapt(old, new, d, demo_rows("v2", 450), budget=3600, held=0.55, steps=steps)
    assert found.step == "polish"
    table = found.table().set_index("step")
    assert table.l0["reuse"] > 2 * table.l0["own release"]
    assert table.splice_error[found.step] < 0.1 * table.splice_error["reuse"]
    assert found.identity.kept > 0.95
    assert found.identity.decoys.upper.iloc[-1] < 0.01
    assert found.dictionary.validity["release"] == "v2"
    assert found.dictionary.training["sequences"] < 450
    assert "polish" in repr(found)
    assert "<table>" in found._repr_html_()


def test_nothing_is_deployed_where_nothing_works():
    found = followed(small.fine_tuned(0.3), steps=("reuse",))
    assert found.dictionary is None and found.step == "" and found.identity is None
    assert found.rungs[0].refused and "nothing is deployed" in repr(found)


def test_another_width_leads_straight_to_training_anew():
    wide, old = small.network(20), small.network()
    with torch.no_grad():
        wide[0].load_state_dict(old[0].state_dict())
        lift = torch.linalg.qr(torch.randn(20, 12, generator=torch.Generator().manual_seed(0))).Q
        wide[2].weight.copy_(lift @ old[2].weight)
        wide[2].bias.copy_(lift @ old[2].bias)
        wide[3].weight.copy_(old[3].weight @ lift.T)
        wide[3].bias.copy_(old[3].bias)
        wide[5].load_state_dict(old[5].state_dict())
    new = small.release("wide", model=wide)
    d = replace(small.trained(), training=small.trained().training | dict(tokens=60_000))
    found = adapt(small.old(), new, d, traffic(), budget=3600)
    told = {r.step: r.refused for r in found.rungs}
    for step in ("reuse", "closed form", "polish", "warm start"):
        assert "20 wide, was 12" in told[step]
    assert found.rungs[-1].judged is not None  # it was trained, and judged
    if found.dictionary is not None:
        assert found.dictionary.weights[0].d == 20
        assert len(found.dictionary.lineage) == 1


def test_a_segment_that_is_explained_worse_already_is_no_reason_against_the_same_release():
    rows = small.rows(1200, 6)
    own = judge(small.old(), small.trained(), rows)
    lost = own.error[:, 0] + (own.spliced - own.bare) ** 2
    hard = lost > np.quantile(lost, 0.8)
    rows = rows.assign(segment=np.where(hard, "hard", "easy"))
    asked = asked_of(own, own, rows, Limits(splice_error=0.4, error_share=0.5, allowance=0.05))
    assert asked.holds.all()
    of_hard = asked[asked.segment == "hard"].set_index("asked").own
    assert of_hard["splice error"] > 2 * own.splice_error
    assert of_hard["error share"] > own.error_share + 0.05


def test_alerts_are_asked_about_however_few_they_are():
    rows = small.rows(400, 6)
    own = judge(small.old(), small.trained(), rows)
    assert "alerts" in set(asked_of(own, own, rows, Limits()).segment)


def test_rows_that_an_ancestor_learned_from_are_remembered():
    new = small.release("rotated", small.CHANGES["rotated"])
    found = followed(new, steps=("closed form",))
    learned = found.dictionary
    refuse_rows_it_learned(learned, small.rows(800, 77), small.COLUMNS)
    for seen in (small.rows(2500, 9), traffic().head(1600)):
        refused(lambda seen=seen: refuse_rows_it_learned(learned, seen, small.COLUMNS), "trained")


def test_an_id_is_the_same_whatever_its_type():
    rows, d = traffic().assign(sequence_id=range(2400)), small.trained()
    held = rows.assign(sequence_id=rows.sequence_id.astype(float)).tail(800)
    refused(lambda: adapt(small.old(), small.old(), d, rows, held=held), "both")


# budgets


@pytest.mark.parametrize("name", ["seconds", "tokens", "memory"])
def test_a_budget_of_nothing_is_refused(name):
    refused(lambda: Budget(**{name: 0}), name, code=64)
    refused(lambda: followed(small.fine_tuned(0.02), steps=("jump",)), "reuse", code=64)


def test_costs_are_known_before_and_kept():
    new = small.fine_tuned(0.5)
    found = adapt(small.old(), new, small.trained(), traffic(), budget=Budget(3600, tokens=500))
    told = {r.step: r.refused for r in found.rungs}
    assert "tokens, 500 are allowed" in told["polish"] and "500 are allowed" in told["retrain"]
    assert found.dictionary is None
    assert all(r.cost.tokens > 500 for r in found.rungs[2:])


def test_a_step_that_takes_too_long_is_stopped():
    climb = Climb(
        small.old(), small.fine_tuned(0.3), small.trained(), traffic(), Clock(Budget(seconds=1e-6))
    )
    found = adapt(small.old(), climb.new, small.trained(), traffic(), budget=1e-6)
    assert found.dictionary is None
    assert all("s were allowed" in r.refused for r in found.rungs)


def test_a_budget_may_be_without_bound():
    args = small.old(), small.fine_tuned(0.1), small.trained(), traffic()
    assert Climb(*args, Clock(Budget(memory=np.inf))).tokens(32) == 32 * 12


def test_memory_bounds_the_tokens_that_are_held():
    args = small.old(), small.fine_tuned(0.1), small.trained(), traffic()
    small_one = Climb(*args, Clock(Budget(memory=60_000)))
    assert small_one.first.tokens == 60_000 // small_one.bytes
    cost = planned_cost("polish", small_one, measured_rates(small_one))
    assert cost.memory <= 60_000 and cost == replace(cost) and Cost(1).over(Budget()) == ""


# what can't be asked


def test_a_dictionary_of_another_release_is_refused():
    new = small.fine_tuned(0.02)
    refused(lambda: adapt(new, small.old(), small.trained(), traffic()), "dictionary", "ipk train")
    bare = replace(small.trained(), validity={}, canary={})
    refused(lambda: adapt(small.old(), new, bare, traffic()), "no release")


def test_too_few_rows_say_how_many_would_do():
    new = small.fine_tuned(0.1)
    error = refused(lambda: adapt(small.old(), new, small.trained(), traffic().iloc[:90]), "held")
    assert any(part.isdigit() for part in error.mend.replace(",", "").split())
    many = traffic()
    found = adapt(
        small.old(),
        small.fine_tuned(0.3),
        small.trained(),
        many.iloc[:15],
        held=many.iloc[400:],
        steps=("closed form", "polish"),
    )
    assert all("rows to learn from" in r.refused for r in found.rungs)


def test_rows_to_judge_by_must_not_be_learnt_from():
    both = traffic()
    refused(
        lambda: adapt(
            small.old(), small.fine_tuned(0.1), small.trained(), both, held=both.iloc[:500]
        ),
        "share no sequence_id",
    )


def test_a_release_of_nan_is_refused():
    net = small.network()
    with torch.no_grad():
        net[2].bias.fill_(float("nan"))
    refused(lambda: followed(small.release("broken", model=net)), "finite")


@pytest.mark.parametrize("name", ["gpt2 clt", "net clt", "llama transcoder, skip, other widths"])
def test_figures_are_those_of_evaluate(name):
    kind, make = SPECS[name]
    d, new, data = made(make()), release(kind, 0.05), rows(kind)
    found, known = judge(new, d, data), evaluate(new, d, data)
    assert found.splice_error == pytest.approx(known.splice_error, rel=1e-6)
    assert found.error_share == pytest.approx(known.error_share, rel=1e-6)
    assert found.l0.mean() == pytest.approx(known.l0, rel=1e-6)
    assert found.fvu == pytest.approx(known.fvu, rel=1e-4)


def test_a_segment_that_got_worse_refuses_what_the_average_lets_pass():
    d, data = small.trained(), small.rows(900, 7)
    data["segment"] = np.where(np.arange(900) < 90, "few", "many")
    own = judge(small.old(), d, data)
    spoilt = own.error.copy()
    spoilt[:90] += 0.3 * (own.error + own.mass)[:90]
    asked = asked_of(replace(own, error=spoilt), own, data, Limits())
    wrong = asked[~asked.holds]
    assert "few" in set(wrong.segment) and "many" not in set(wrong.segment)
    whole = asked[(asked.asked == "error share") & (asked.segment == "")]
    assert whole.holds.all()
    assert isinstance(asked, pd.DataFrame)
