"""Measured answers, trust labels, calibration and the detector, each against its definition.

Error rates are simulated, and held against Clopper-Pearson bounds.
"""

import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from small_language import SITES, alone, by_hand, world
from torch import nn

from interpkit.core.statistics import clopper_pearson
from interpkit.data.changes import turned
from interpkit.data.ledger import generate
from interpkit.data.shifts import CATALOGUE, Shift
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.evaluate import attributions
from interpkit.dictionary.replacement import splice
from interpkit.dictionary.validity import certify
from interpkit.drift.simulate import small_world
from interpkit.explain.ablation import Ablation, all_effects
from interpkit.serve.answers import Answering, answer
from interpkit.serve.calibration import (
    Calibration,
    calibrate,
)
from interpkit.serve.certified import fewest_trusted, learn_then_test, thresholds_of
from interpkit.serve.detector import Detector, Watch, fair, first_alarms
from interpkit.serve.monitor import attach
from interpkit.serve.novelty import Novelty, as_reading, readings
from interpkit.serve.outcomes import Outcomes
from interpkit.serve.probe import Untouched
from interpkit.serve.records import Record, TrustLabel
from interpkit.serve.removals import candidates, measured
from interpkit.serve.service import Service
from interpkit.serve.stated import Stated, Wording, padded_ids, token_statement, true_at
from interpkit.serve.trust import TrustLimits, observed

SPREAD = TrustLimits(spread=1.0)

# answers


def of_sites(*numbers: int) -> tuple:
    "The small language world with the dictionary of some of its sites."
    w = world()
    d = Dictionary(
        tuple(SITES[i] for i in numbers), tuple(w.dictionary.weights[i] for i in numbers)
    )
    return w, d


@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 1)])
def test_reasons_are_ablations_and_the_splice_is_the_splice(numbers):
    w, d = of_sites(*numbers)
    given = Answering(w.old, d, n=5, limits=SPREAD, inputs=False).answers(w.rows)
    expected, spliced = all_effects(w.old, d, w.rows), splice(w.old, d, w.rows)
    assert np.abs(expected).max() > 0.5
    for i, a in enumerate(given):
        assert np.allclose(a.effect, expected[i, a.feature], atol=2e-4)
        assert (np.diff(np.abs(a.effect)) <= 1e-12).all()
        assert a.decision == pytest.approx(spliced.bare[i], abs=1e-4)
        assert a.spliced == pytest.approx(spliced.spliced[i], abs=2e-4)


def test_reasons_of_both_sites_are_removed_together_by_plain_hooks():
    w, d = of_sites(0, 1)
    batch = w.old.batch(w.rows)
    ablation = Ablation(w.old, d, batch, attributed=True)
    bare = attributions(w.old, d, batch)  # a forward of their own gives the same
    for s in d.sites:
        assert torch.equal(bare.acts[s], ablation.prefix.acts[s])
    feature = candidates(bare.signed.toarray(), 6)
    together = np.ones(feature.shape, bool)
    found = measured(ablation, feature, together, w.rows.sequence_id.tolist())
    assert found.astray < 1e-4
    for i, ids in enumerate(w.rows.input_ids):
        bare, acts = alone(w.old.model, ids)
        removed = {}
        for k in (0, 1):
            own = feature[i] - 24 * k
            own = own[(own >= 0) & (own < (24, 20)[k]) & (feature[i] >= 0)]
            counts = torch.ones(len(ids), 1)
            if ids[0] == 1 and len(ids) > 1:
                counts[0] = float(batch.mask[i, 0])
            codes = by_hand(d.weights[k], acts[k])[:, own] * counts
            removed[k] = codes @ d.weights[k].W_dec[own, 0]
        without = {k: (lambda h, gone=gone: h - gone) for k, gone in removed.items()}
        after, _ = alone(w.old.model, ids, without)
        assert found.joint[i] == pytest.approx(bare - after, abs=5e-4), i


def test_one_request_is_answered_as_in_any_batch():
    w, d = of_sites(1)
    answering = Answering(w.old, d, n=4, limits=SPREAD, inputs=False)
    together = answering.answers(w.rows)
    for i in (0, 5, 13):
        (single,) = answering.answers(w.rows.iloc[[i]])
        assert np.allclose(single.effect, together[i].effect, atol=2e-4)
        names = ("decision", "spliced", "joint", "random", "error_share")
        for name in names:
            assert getattr(single, name) == pytest.approx(getattr(together[i], name), abs=5e-4)


def test_a_short_way_that_goes_astray_is_tried_again():
    w, d = of_sites(0)
    answering = Answering(w.old, d, n=3, limits=SPREAD, inputs=False)
    expected = answering.answers(w.rows)
    ((key, kept),) = answering.tried.items()
    last = {s: [*names, "model.layers.3"] for s, names in kept.modules.items()}
    answering.tried[key] = replace(kept, modules=last)  # it would answer as if nothing changed
    found = answering.answers(w.rows)
    assert "model.layers.3" not in str(answering.tried[key].modules)
    for a, b in zip(found, expected, strict=True):
        assert np.allclose(a.effect, b.effect, atol=2e-4)


def test_where_the_dictionary_abstains_the_inputs_speak():
    world = small_world(60)
    broken = replace(
        world.dictionary,
        weights=(replace(world.dictionary.weights[0], b_dec=torch.full((16,), 5.0)),),
        validity={},
        canary={},
    )
    broken = certify(world.old, broken, world.rows)
    given = answer(world.old, broken, world.rows.head(8), n=4)
    assert all("not carried" in a.label.reasons for a in given)
    for a in given:
        assert set(a.inputs.input) <= {f"x{i}" for i in range(6)}
        assert (a.inputs.effect.abs().diff().dropna() <= 1e-9).all()
    single = answer(world.old, broken, world.rows.head(1), n=4)[0]
    assert single.inputs.effect.abs().max() > 0


def test_an_answer_through_another_release_is_invalid():
    world = small_world(60)
    given = answer(world.new, world.dictionary, world.rows.head(3), n=4)
    assert {a.label.kind for a in given} == {"INVALID"}
    uncertified = replace(world.dictionary, validity={}, canary={})
    refused(lambda: answer(world.old, uncertified, world.rows.head(3)), "canary batch")
    given = answer(world.old, uncertified, world.rows.head(3), limits=SPREAD, inputs=False)
    assert {a.label.reasons for a in given} == {("no certificate",)}


@pytest.mark.parametrize("name", ["gap", "error_share", "joint", "random", "off_share"])
def test_nothing_that_is_not_a_number_is_trusted(name):
    fine = dict(gap=0.0, error_share=0.0, joint=1.0, random=0.1, off_share=0.0)
    assert observed(pd.Series(fine)).trusted
    assert not observed(pd.Series(fine | {name: float("nan")})).trusted
    assert not observed(pd.Series(dict.fromkeys(fine, 0.0))).trusted  # nothing explains nothing


# what labels state


def test_every_label_of_the_demo_can_be_tested_and_is_as_precise_as_it_says(request):
    from interpkit.data.demo import demo_folder, demo_rows
    from interpkit.dictionary.firings import firings_of
    from interpkit.model.releases import Release

    home = demo_folder()
    d, v1 = Dictionary.load(home / "dictionary"), Release.load(home / "releases" / "v1")
    rows = demo_rows("v1", 150)
    stated, ids = Stated(v1, d), padded_ids(rows)
    (firings,) = firings_of(v1, d, rows).values()
    fires = np.zeros((d.n_features, *ids.shape), bool)
    fires[firings.feature, firings.sequence[firings.position], firings.token[firings.position]] = 1
    names = np.flatnonzero(stated.named)
    assert len(names) > 100
    gaps = []
    for f in names.tolist():
        true = true_at(stated, f, rows, ids, ids >= 0)
        assert true is not None, d.labels[f]
        if true.sum() >= 100:
            gaps.append((true & fires[f]).sum() / true.sum() - d.figures[f]["precision"])
    assert len(gaps) > 50 and np.abs(np.median(gaps)) < 0.03


def test_columns_lists_and_places_are_read_as_they_were_written():
    rows = pd.DataFrame(
        dict(a=[1.0, 2.0, np.nan], kind=["x or y", "z", "z"], spent=[[1, 5], [2], []])
    )
    d = small_world(10).dictionary
    texts = {
        "a >= 1.5": [0, 1, 0],
        "a is missing": [0, 0, 1],
        "a = 1": [1, 0, 0],
        "kind is not z": [1, 0, 0],
        "length of spent < 2": [0, 1, 1],
        "largest spent >= 5": [1, 0, 0],
        "a < 5 and kind = z": [0, 1, 0],
        "a = 1 or 2": [1, 1, 0],
        "a = 1 (2)": [1, 0, 0],
    }
    labels = tuple([*texts, *(f"unit {i}" for i in range(16 - len(texts)))])
    worth = [dict(label=x, precision=0.9, recall=0.5, inputs=[], fires_on=0.5) for x in labels]
    stated = Stated(small_world(10).old, replace(d, labels=labels, figures=tuple(worth)))
    for f, expected in enumerate(texts.values()):
        true = true_at(stated, f, rows, None, np.ones((3, 1), bool))
        assert true[:, 0].tolist() == [bool(x) for x in expected], labels[f]
    assert true_at(stated, 15, rows, None, np.ones((3, 1), bool)) is None
    assert Wording.of("a >= 1, at position 3").position == 3
    assert token_statement("token 7 so far", {})(np.array([[3, 7, 3]])).tolist() == [[0, 1, 1]]


# the detector


def test_false_alarms_of_the_detector_are_as_bounded():
    "At threshold c, n null outcomes raise an alarm with a probability of at most n / c."
    rng = np.random.default_rng(0)
    streams, n, c = 3000, 500, 5000.0
    alarms = (first_alarms(rng.random((streams, n)) < 0.05, 0.05, c) > 0).sum()
    low, _ = clopper_pearson(int(alarms), streams, 0.999)
    assert low <= n / c  # a detector whose bets gain under the null would be far over it
    early = first_alarms(rng.random((streams, n)) < 0.07, 0.05, c)
    assert (early > 0).mean() > 3 * n / c  # and the bound is no empty one


def test_the_detector_is_late_by_few_outcomes():
    rng = np.random.default_rng(1)
    before, after = rng.random((400, 1000)) < 0.05, rng.random((400, 400)) < 0.20
    alarms = first_alarms(np.concatenate([before, after], 1), 0.05)
    late = np.where(alarms == 0, 400, alarms - 1000)
    assert (late > 0).all()
    assert (late <= 165).mean() > 0.65  # the median is 125 or so


def test_single_streams_take_the_path_of_many_and_of_their_file(tmp_path):
    rng = np.random.default_rng(2)
    outcomes = np.concatenate([rng.random(300) < 0.05, rng.random(300) < 0.4])
    (alarm,) = first_alarms(outcomes[None], 0.05, 1e6)
    whole, part, at = Detector(0.05, 1e6), Detector(0.05, 1e6), None
    for i, x in enumerate(outcomes):
        whole.update(bool(x))
        part.update(bool(x))
        if i % 97 == 0:
            part = Detector.load(part.save(tmp_path / "state.json"))
        assert part == whole  # to the bit
        at = i + 1 if whole.alarm and at is None else at
    assert at == alarm == whole.alarm_at
    whole.reset("me", "a label was mended")
    assert not whole.alarm and whole.resets[0]["alarm_at"] == alarm


def test_a_detector_refuses_what_is_no_outcome(tmp_path):
    for x in (0.5, None, "1", float("nan"), 2):
        refused(lambda x=x: Detector().update(x), "0 or 1", code=64)
    refused(lambda: Detector(p0=0), "p0", code=64)
    refused(lambda: Detector().reset("", ""), "who resets", code=64)
    (tmp_path / "x.json").write_text('{"p0": 0.05}')
    refused(lambda: Detector.load(tmp_path / "x.json"), "state of a detector")
    detector = Detector(0.02, 100)
    for _ in range(9):
        detector.update(1)
    kept = json.loads(detector.save(tmp_path / "x.json").read_text())
    for change in (dict(alarm_at=None), dict(seen="9"), dict(log_stakes=[]), dict(threshold=1e9)):
        (tmp_path / "x.json").write_text(json.dumps(kept | change))
        refused(lambda: Detector.load(tmp_path / "x.json"), "it was changed")
    refused(lambda: fair(0.1, 0.5, 0.2), "probabilities", code=64)


# calibration


def simulated(rng, n: int) -> tuple[np.ndarray, np.ndarray]:
    "Risks, and who is wrong: 2 % at risk 0.5, up to 8 % at risk 1; the score tells truly."
    risk = rng.random(n)
    return risk, rng.random(n) < 0.08 * risk**2


def true_risk(threshold: float) -> float:
    return 0.08 * threshold**2 / 3


def test_certified_thresholds_are_wrong_as_seldom_as_promised():
    rng, over, covered, trials = np.random.default_rng(3), 0, 0, 200
    for _ in range(trials):
        learnt = simulated(rng, 1500)
        risk, wrong = simulated(rng, 1500)
        tried = thresholds_of(*learnt, 1500, 0.01, 0.05)
        certified, _ = learn_then_test(risk, wrong, tried)
        if certified.threshold is not None:
            covered += 1
            over += true_risk(certified.threshold) > 0.01
    low, _ = clopper_pearson(over, trials, 0.999)
    assert low <= 0.05
    assert covered > trials / 4  # it is not safe by never certifying


def test_a_rule_without_a_test_would_be_caught():
    "The threshold whose observed share of wrong ones is just under the limit fails half the time."
    rng, over, trials = np.random.default_rng(4), 0, 300
    for _ in range(trials):
        risk, wrong = simulated(rng, 1500)
        order = np.argsort(risk)
        share = np.cumsum(wrong[order]) / np.arange(1, 1501)
        last = np.flatnonzero(share <= 0.01)
        over += len(last) > 0 and true_risk(risk[order][last[-1]]) > 0.01
    low, _ = clopper_pearson(over, trials, 0.999)
    assert low > 0.05


def test_no_threshold_is_certified_on_too_few_or_on_the_wrong_ones():
    n = fewest_trusted(0.01, 0.05)
    sure = learn_then_test(np.zeros(n), np.zeros(n, bool), np.array([0.0]))[0]
    assert sure.threshold == 0.0 and sure.coverage == 1.0
    few = learn_then_test(np.zeros(n - 1), np.zeros(n - 1, bool), np.array([0.0]))[0]
    assert few.threshold is None and str(few).startswith("no coverage")
    novel = learn_then_test(np.full(n, np.inf), np.zeros(n, bool), np.array([0.0, 1.0]))[0]
    assert novel.threshold is None
    assert thresholds_of(np.full(9, np.inf), np.zeros(9, bool), 9, 0.01, 0.05).size == 0


def test_novel_requests_of_the_same_kind_are_as_rare_as_their_p_value_says():
    "Over calibrations: a p-value of at most 5 % comes in at most 5 % of the cases."
    rng, novel, trials = np.random.default_rng(5), 0, 600
    for _ in range(trials):
        x = rng.exponential(1, (161, 4))
        kept = np.arange(160) >= 60
        novelty = Novelty.fit(x[:160], x[:160].sum(1), kept)
        novel += int(novelty.p_value(x[160:], x[160:].sum(1))[0] <= 0.05)
    low, high = clopper_pearson(novel, trials, 0.999)
    assert low <= 0.05 and high > 0.02


@pytest.fixture(scope="module")
def calibrated():
    w = small_world(1400)
    lax = TrustLimits(joint=1e-6)
    return w, calibrate(w.old, w.dictionary, w.rows, range(16), limits=lax)


def test_a_calibration_comes_back_and_says_for_whom_and_how_long(calibrated, tmp_path):
    w, c = calibrated
    again = Calibration.load(c.save(tmp_path / "calibration.json"))
    assert again == c and str(c.segments[""]).endswith("wrong")
    x = readings(w.old, w.dictionary, w.rows.head(9), np.arange(16))
    decision = w.old.run(w.rows.head(9)).tolist()
    each = [c.scores(dict(enumerate(a)), d) for a, d in zip(x.tolist(), decision, strict=True)]
    usual = max(each, key=lambda scores: scores["p_novel"])
    assert c.predict(usual).trusted
    assert c.predict(usual, alarm=True).reasons == ("under alarm",)
    assert c.predict(usual, segment="west").reasons == ("predicted wrong",)
    assert "novel" in c.predict(c.scores({0: 1e4}, 0.1)).reasons
    late = datetime.now(UTC) + timedelta(days=91)
    assert c.predict(usual, now=late).reasons == ("expired",)
    other = replace(w.dictionary, labels=tuple(f"other {i}" for i in range(16)))
    assert c.stands(w.old, w.dictionary).trusted
    assert c.stands(w.old, other).kind == c.stands(w.new, w.dictionary).kind == "INVALID"
    kept = json.loads((tmp_path / "calibration.json").read_text())
    (tmp_path / "calibration.json").write_text(json.dumps(kept | dict(expires="2099-01-01")))
    refused(lambda: Calibration.load(tmp_path / "calibration.json"), "it was changed")
    (tmp_path / "calibration.json").write_text('{"segments": {}}')
    refused(lambda: Calibration.load(tmp_path / "calibration.json"), "calibration.json")
    refused(lambda: calibrate(w.old, w.dictionary, w.rows.head(50), range(16)), "at least")
    refused(lambda: calibrate(w.new, w.dictionary, w.rows, range(16)), "certified for this")


def test_scores_that_are_not_numbers_are_not_trusted(calibrated):
    _, c = calibrated
    nan = float("nan")
    assert not c.predict(dict(risk=nan, p_novel=0.5)).trusted
    assert not c.predict(dict(risk=0.0, p_novel=nan)).trusted


def test_a_live_monitor_reads_what_was_calibrated_on(calibrated):
    w, c = calibrated
    watch = c.watch()
    rows = w.rows.head(40)
    x = readings(w.old, w.dictionary, rows, np.asarray(c.features))
    with attach(
        w.old,
        w.dictionary,
        features=c.features,
        deferred=False,
        trust=c.labeller(watch),  # which counts what is novel, too
    ) as monitor:
        w.old.run(rows)
        records = list(monitor.records)[-40:]
    seen = np.stack([as_reading(r.active, np.asarray(c.features)) for r in records])
    assert np.allclose(seen, x, atol=1e-5)
    expected = [c.predict(c.scores(r.active, r.decision)) for r in records]
    assert [str(r.label) for r in records] == [str(e) for e in expected]
    assert sum(r.label.trusted for r in records) > 20
    assert watch.exceedances.seen == 40
    for record, given in zip(records[:9], answer(w.old, w.dictionary, rows.head(9)), strict=True):
        c.audited(watch, record, given)
    assert watch.wrong.seen == sum(r.label.trusted for r in records[:9]) and not watch.wrong.ones


def test_a_live_monitor_trusts_only_what_was_calibrated_for_it(calibrated):
    w, c = calibrated
    watch, live, rows = c.watch(), deepcopy(w.old.model), w.rows.head(40)
    given = dict(features=c.features, deferred=False, model=live)
    (x,) = w.old.batch(rows).args
    other = replace(w.dictionary, labels=tuple(f"other {i}" for i in range(16)))
    for wrong, of in ((replace(c, release="0" * 64), w.dictionary), (c, other)):
        refused(lambda c=wrong, d=of: attach(w.old, d, trust=c, **given), "a calibration of")
    with attach(w.old, w.dictionary, trust=c.labeller(watch), **given) as monitor:

        def labels() -> set[str]:
            live(x)
            return {str(r.label) for r in monitor.latest}

        assert "TRUSTED" in labels()
        monitor.level = "monitor"
        assert labels() == {"ABSTAIN(not read)"}
        monitor.level = "monitor-last"
        for _ in range(40):
            watch.wrong.update(1)
        assert "TRUSTED" not in labels()
        watch.wrong.reset("a test", "it was looked into")
        assert "TRUSTED" in labels()
        live.load_state_dict({name: 1.01 * t for name, t in w.old.model.state_dict().items()})
        assert labels() == {"INVALID(another release)"}
        refused(monitor.verify, "")
    late = replace(c, expires="2020-01-01T00:00:00+00:00")
    live = given["model"] = deepcopy(w.old.model)
    with attach(w.old, w.dictionary, trust=late, **given) as monitor:
        live(x)
        assert {str(r.label) for r in monitor.latest} == {"INVALID(expired)"}


def test_an_answer_after_a_change_of_weights_is_invalid():
    w = small_world(400)
    release = replace(w.old, model=deepcopy(w.old.model))
    asked = Answering(release, w.dictionary, inputs=False)
    assert {a.label.kind for a in asked.answers(w.rows.head(3))} <= {"TRUSTED", "ABSTAIN"}
    with torch.no_grad():
        next(release.model.parameters()).mul_(1 + 1e-4)
    assert {str(a.label) for a in asked.answers(w.rows.head(3))} == {"INVALID(another release)"}


def test_weights_that_change_in_any_way_are_noticed():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    changes = (
        lambda m: m.load_state_dict(deepcopy(m.state_dict())),
        lambda m: m.load_state_dict(deepcopy(m.state_dict()), assign=True),
        lambda m: m[0].bias.detach().zero_(),
        lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(2, 2))),
        lambda m: m.double(),
        lambda m: m.train()(torch.randn(4, 2)),
    )
    for change in changes:
        own = deepcopy(model).eval()
        same = Untouched(own)
        own(torch.randn(4, 2)).sum().backward()
        assert same()
        change(own)
        assert not same()


def test_what_was_read_at_another_level_is_not_trusted(calibrated):
    _, c = calibrated
    for level, decision in (("off", 0.1), ("monitor-last", None)):
        record = Record("1", 0.0, level, TrustLabel(), decision=decision)
        assert c.labeller()(record).reasons == ("not read",)


def test_an_alarm_of_either_stream_is_one(tmp_path):
    watch = Watch(Detector(0.02, 100), Detector(0.02, 100))
    for _ in range(8):
        watch.wrong.update(1)
    assert watch.alarm
    watch.save(tmp_path)
    assert Watch.load(tmp_path) == watch


# shifts


@pytest.mark.parametrize("code", [c for c, e in CATALOGUE.items() if e.changes == "data"])
def test_a_shift_of_data_moves_tokens_and_nothing_at_strength_0(code):
    before = generate(400, seed=3)
    none, whole = (generate(400, seed=3, shift=Shift(code, s)) for s in (0.0, 1.0))
    assert (none.tokens == before.tokens).all() and np.allclose(none.score, before.score)
    moved = (whole.tokens != before.tokens).any(1).mean()
    assert (moved > 0.02) or code == "S2"  # of frauds alone, which move no token
    if code in ("S8", "S9"):  # written otherwise, done as before
        assert np.allclose(whole.score, before.score) and moved > 0.9


def test_slow_drift_comes_row_by_row_in_the_order_of_days():
    q = generate(3000, seed=1, shift=Shift("S10"))
    online = q.on["online"].mean(1)
    assert online[2000:].mean() > 1.15 * online[:1000].mean()
    assert q.rows.timestamp.is_monotonic_increasing


def test_a_turned_model_decides_the_same_and_reads_differently():
    w = world()
    state = w.old.model.state_dict()
    moved = turned(state, 1.0)
    other = replace(w.old)

    model = deepcopy(w.old.model)
    model.load_state_dict(moved)
    other = type(w.old).from_module(
        model, inputs=w.old.inputs, decision=w.old.decision, sites=list(SITES), device="cpu"
    )
    assert torch.allclose(other.run(w.rows), w.old.run(w.rows), atol=1e-3)
    refused(lambda: turned(dict(W=torch.eye(2))), "Llama")


def test_a_monitor_explains_the_release_it_serves_and_no_other():
    "What is run for it is no request; a live model that is another one by now is refused."
    w = small_world(60)
    bare = replace(w.dictionary, validity={}, canary={})
    certified = certify(w.old, bare, w.rows)
    live = deepcopy(w.old.model)
    with attach(w.old, certified, model=live, features=range(8), deferred=False) as monitor:
        live(*w.old.batch(w.rows.head(4)).args)
        before = list(monitor.records)
        own = answer(w.old, certified, w.rows.head(3), n=4)
        for a, b in zip(monitor.explain(w.rows.head(3), n=4), own, strict=True):
            assert a.feature.tolist() == b.feature.tolist()
            assert np.allclose(a.effect, b.effect, atol=1e-5) and a.label == b.label
        assert list(monitor.records) == before
        with torch.no_grad():
            next(live.parameters()).add_(0.5)
        refused(lambda: monitor.explain(w.rows.head(1), n=4), code=65)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_service_measures_what_it_trusts_and_its_watch_survives_a_restart(
    calibrated, tmp_path, deferred
):
    w, c = calibrated
    release = replace(w.old, model=deepcopy(w.old.model))
    rows = w.rows.drop(columns=["sequence_id"]).to_dict("records")

    def serve(c: Calibration) -> Service:
        trust = c.labeller(c.watch(tmp_path / "watch"))
        given = dict(features=c.features, deferred=deferred, watch_folder=tmp_path / "watch")
        service = Service(release, w.dictionary, trust=trust, look_every=None, **given)
        service.outcomes.p = 1.0
        return service

    service = serve(c)
    for row in rows[:20]:
        service.decide(row)
    service.outcomes.waiting.join()
    seen = sum(r.label.trusted for r in service.monitor.records)
    assert service.outcomes.measured == seen > 5 and not service.outcomes.failures
    service.close()
    nothing_is_right = replace(c, limits=c.limits | dict(joint=1e12))
    again = serve(nothing_is_right)
    watch = again.outcomes.labeller.watch
    assert watch.wrong.seen == seen and not watch.wrong.ones
    for row in rows[20:60]:
        again.decide(row)
        again.outcomes.waiting.join()
    assert watch.alarm and not again.decide(rows[0]).record.label.trusted
    assert again.outcomes.wrong == watch.wrong.ones < 40  # what abstains is not measured
    again.close()
    assert "measured" in again.health()["outcomes"]
    refused(
        lambda: replace(c, alpha=0.2).watch(tmp_path / "watch"), "the watch of this calibration"
    )
    given = dict(trust=c, watch_folder=tmp_path, look_every=None)
    refused(lambda: Service(release, w.dictionary, **given), "a watch to keep", code=64)


def test_a_trusted_answer_that_cannot_be_measured_is_a_wrong_one(calibrated, tmp_path):
    w, c = calibrated
    outcomes = Outcomes(Answering(w.old, w.dictionary), c.labeller(c.watch()), 1.0, tmp_path)
    unread = w.rows.head(1).drop(columns="sequence_id")  # answers are asked by their ids
    trusted = Record("a", 0.0, "monitor-last", TrustLabel())
    for _ in range(12):
        outcomes.offer(unread, lambda: trusted)
    assert outcomes.close() and outcomes.measured == 0
    assert outcomes.wrong == len(outcomes.failures) == 12
    assert outcomes.labeller.watch.alarm and c.watch(tmp_path).alarm
