"""A monitor on a live model reads what the dictionary reads, and the model never notices.

Every answer has a record, whatever goes wrong beside it.
"""

import copy
import pickle
import threading
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from small_language import BOS, PAD, directions, world
from torch import nn

import interpkit
from interpkit.core.errors import ExitCode
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.validity import certify
from interpkit.drift.simulate import small_world
from interpkit.model.batch import Batch
from interpkit.model.capture import capture
from interpkit.model.releases import Release
from interpkit.model.sites import Site
from interpkit.serve.audits import Auditor
from interpkit.serve.hooks import monitor_of
from interpkit.serve.levels import Budget
from interpkit.serve.monitor import attach
from interpkit.serve.monitored import monitored
from interpkit.serve.records import TrustLabel
from interpkit.serve.trust import standing

LEVELS = ("monitor-last", "monitor", "full")


@lru_cache
def table() -> SimpleNamespace:
    "A network on a table, with a certified dictionary, and rows."
    w = small_world(n=400)
    certified = certify(w.old, replace(w.dictionary, validity={}, canary={}), w.rows)
    return SimpleNamespace(release=w.old, dictionary=certified, rows=w.rows)


@lru_cache
def language() -> SimpleNamespace:
    "A Llama of four layers with a certified dictionary at two of them, and rows of many lengths."
    w = world(n=300)
    return SimpleNamespace(
        release=w.old, dictionary=certify(w.old, w.dictionary, w.rows), rows=w.rows
    )


def live_of(w: SimpleNamespace) -> nn.Module:
    "A server's own module with the release's weights."
    return copy.deepcopy(w.release.model)


def whole(w: SimpleNamespace, i: int, level: str, dictionary: Dictionary | None = None) -> dict:
    "Feature -> largest activation of row i over the positions that a level reads, by `encode`."
    dictionary = dictionary or w.dictionary
    batch = w.release.batch(w.release.pin(w.rows.iloc[i : i + 1]))
    acts = capture(w.release.model, dictionary.sites, batch)
    found = {}
    for s in dictionary.sites:
        if level == "full" and s != dictionary.sites[-1]:
            continue
        h = acts[s][0]
        h = h[-1:] if level == "monitor-last" else h[1:] if len(h) > 1 else h
        codes = dictionary.encode(s, h).dense().amax(0)
        first = dictionary.offsets[s]
        found |= {first + f: float(codes[f]) for f in codes.nonzero().flatten().tolist()}
    return found


def same(active: dict, expected: dict, few=None) -> bool:
    "Whether a record holds what is expected, of the features that are monitored."
    wanted = {f: x for f, x in expected.items() if few is None or f in few}
    return active.keys() == wanted.keys() and all(
        abs(active[f] - x) < 1e-4 for f, x in wanted.items()
    )


# what is read


@pytest.mark.parametrize("world_of", [table, language])
@pytest.mark.parametrize("deferred", [True, False])
def test_every_level_reads_what_the_dictionary_reads_and_changes_no_answer(world_of, deferred):
    w = world_of()
    few = list(range(0, w.dictionary.n_features, 2))
    model, batch = live_of(w), w.release.batch(w.release.pin(w.rows.head(9)))
    bare = batch.run(model)
    with attach(w.release, w.dictionary, model=model, features=few, deferred=deferred) as monitor:
        for level in LEVELS:
            monitor.level = level
            monitor.setup.release.decide(batch.run(model), batch)
            monitor.flush()
            together = monitor.latest
            assert len(together) == 9
            for i, record in enumerate(together):
                expected = whole(w, i, level)
                assert same(record.active, expected, None if level == "full" else few), (level, i)
                one = w.release.batch(w.release.pin(w.rows.iloc[i : i + 1]))
                out = one.run(model)
                monitor.flush()
                (alone,) = monitor.latest
                assert same(alone.active, record.active)
                decision = float(w.release.decide(out, one))
                assert abs(alone.decision - decision) < 1e-4
                assert alone.heartbeats == {str(s): 1 for s in w.dictionary.sites}
        again = batch.run(model)
    same_out = [a.equal(b) for a, b in zip(first(bare), first(again), strict=True)]
    assert all(same_out)


def first(out) -> list[torch.Tensor]:
    "The tensors of an output."
    return [out] if torch.is_tensor(out) else [out.logits]


def test_monitored_features_are_those_that_carry_most():
    w = table()
    few = monitored(w.release, w.dictionary, w.rows, n=6, watched=[0])
    more = monitored(w.release, w.dictionary, w.rows, n=12)
    assert 0 in few.features
    assert few.coverage < more.coverage <= sum(more.by_site.values()) + 1e-9
    with attach(w.release, w.dictionary, model=live_of(w), features=few) as monitor:
        monitor.model(torch.zeros(1, 6))
        monitor.flush()
        assert monitor.latest[0].coverage == few.coverage
        assert monitor.latest[0].features == few.digest
    refused(
        lambda: attach(w.release, w.dictionary, features=few, budget=Budget(min_coverage=0.999)),
        "min_coverage",
        code=ExitCode.BAD_PARAMETERS,
    )
    none = SimpleNamespace(features=np.array([1, 2]), predict=lambda scores: TrustLabel())
    refused(
        lambda: attach(w.release, w.dictionary, features=few, trust=none),
        "calibrat",
        code=ExitCode.BAD_PARAMETERS,
    )


def test_a_calibration_labels_records_and_its_errors_are_told():
    w = table()

    class Calibrated:
        features = np.arange(8)

        def scores(self, active, decision):
            return dict(active=float(len(active)), decision=decision)

        def predict(self, scores):
            if abs(scores["decision"]) > 1e3:
                raise ValueError("too large")
            return TrustLabel() if scores["active"] else TrustLabel("ABSTAIN", ("novel",))

    model = live_of(w)
    given = dict(model=model, features=range(8), deferred=False, trust=Calibrated())
    with attach(w.release, w.dictionary, **given) as monitor:
        model(w.release.batch(w.rows.head(20)).args[0])
        kinds = {bool(r.active): r.label.kind for r in monitor.latest}
        assert set(kinds.items()) <= {(True, "TRUSTED"), (False, "ABSTAIN")}
        model(torch.full((1, 6), 1e6))
        assert monitor.latest[0].label.kind == "INVALID"
        monitor.level = "full"
        model(torch.zeros(1, 6))
        assert monitor.latest[0].label.reasons == ("expired",)  # nothing was calibrated for it


def test_a_site_that_is_changed_in_place_is_read_as_it_passed():
    w = table()
    in_place = copy.deepcopy(w.release.model)
    in_place[1].inplace = True
    release = Release.from_module(in_place, w.release.inputs, w.release.decision, ["0"])
    weights = replace(
        w.dictionary.weights[0], threshold=torch.zeros_like(w.dictionary.weights[0].threshold)
    )
    before = certify(release, Dictionary((Site("0"),), (weights,)), w.rows)
    s = SimpleNamespace(release=release, dictionary=before, rows=w.rows)
    for deferred in (True, False):
        with attach(release, before, features=range(16), deferred=deferred) as monitor:
            assert monitor.setup.layout.copied == {0}
            release.run(w.rows.head(5))
            monitor.flush()
            records = monitor.latest
        for i, record in enumerate(records):
            assert same(record.active, whole(s, i, "monitor-last"), range(16))


def test_gradients_autocast_and_inference_mode_make_no_difference_to_the_reading():
    w = table()
    model, x = live_of(w).requires_grad_(True), w.release.batch(w.rows.head(3)).args[0]
    for level in LEVELS:
        given = dict(model=model, features=range(16), level=level)
        with attach(w.release, w.dictionary, **given) as monitor:
            model(x).sum().backward()
            monitor.flush()
            plain = [r.active for r in monitor.latest]
            with torch.inference_mode():
                model(x)
            monitor.flush()
            assert [r.active for r in monitor.latest] == plain
            with torch.autocast("cpu", torch.bfloat16):
                out = model(x)
            assert out.dtype == torch.bfloat16
            monitor.flush()
            half = [r.active for r in monitor.latest]
            assert not any("failed" in r.label.reasons for r in monitor.latest)
            for a, b in zip(plain, half, strict=True):
                assert all(abs(a[f] - b[f]) < 0.05 * (1 + abs(a[f])) for f in a.keys() & b.keys())


@pytest.mark.parametrize("level", LEVELS)
def test_a_mask_is_found_however_it_is_passed_or_nothing_is_read(level):
    w = language()
    few, model = range(0, w.dictionary.n_features, 2), live_of(w)
    batch = w.release.batch(w.release.pin(w.rows.head(6)))
    ids, mask = batch.kwargs["input_ids"], batch.kwargs["attention_mask"]
    embeds = dict(inputs_embeds=model.get_input_embeddings()(ids).detach(), attention_mask=mask)
    square = dict(input_ids=ids, attention_mask=mask[:, None, None].bool())
    given = dict(model=model, features=few, deferred=False, level=level)
    assert not mask.all()
    for position in (None, -1) if level != "monitor-last" else (None,):
        with (
            attach(w.release, w.dictionary, position=position, **given) as monitor,
            torch.no_grad(),
        ):
            for args, kwargs in (((), batch.kwargs), ((ids, mask), {}), ((ids, mask.float()), {})):
                model(*args, **kwargs)
                for i, record in enumerate(monitor.latest):
                    assert same(record.active, whole(w, i, level), level != "full" and few or None)
            model(**square)
            assert {r.label.reasons for r in monitor.latest} == {("failed",)}
            model(**embeds)  # where the start token is, only ids tell
            told = {r.label.reasons for r in monitor.latest}
            assert (("failed",) in told) == (level != "monitor-last")


def test_each_forward_of_generate_is_a_request():
    w = language()
    with attach(w.release, w.dictionary, features=range(8), level="monitor") as monitor:
        ids = torch.tensor([[BOS, 4, 5, 6]])
        w.release.model.generate(
            ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=PAD
        )
        assert len(monitor.records) == 3
        assert not any(r.label.reasons == ("failed",) for r in monitor.records)


# what goes wrong


def test_an_error_of_the_model_leaves_nothing_behind():
    w = table()
    model = live_of(w)
    with attach(w.release, w.dictionary, model=model, features=range(8), deferred=False) as m:
        model(torch.zeros(1, 6))
        m.restart([])
        m.name("asked in vain", "too")
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 5))
        assert len(m.records) == 0 and m.latest == []
        assert m.broken == 1
        assert m.local.passing is None
        model(torch.zeros(2, 6))
        assert [r.request for r in m.latest] == ["0", "1"]
        assert not any("hook silent" in r.label.reasons for r in m.latest)
    with pytest.raises(KeyError), attach(w.release, w.dictionary, model=model, features=[1]):
        raise KeyError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("level", LEVELS)
def test_what_stops_a_reading_is_told_and_does_not_stop_the_model(level):
    w = table()
    model = live_of(w)
    given = dict(model=model, features=range(8), level=level, deferred=False)
    with attach(w.release, w.dictionary, **given) as m:
        reading = m.readings[level]

        def stop(*_):
            raise ValueError("stopped")

        reading.output = stop
        assert model(torch.zeros(3, 6)).shape == (3, 1)
        assert [r.label.reasons for r in m.latest] == [("failed",)] * 3
        (told,) = m.latest[0].label.details  # not its words: they may quote a row
        assert "ValueError in" in told and "stopped" not in told


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_invalid_and_the_rows_beside_it_are_not(level, value):
    w = table()
    model = live_of(w)
    given = dict(model=model, features=range(4), level=level)
    with attach(w.release, w.dictionary, **given) as monitor:
        x = torch.zeros(3, 6)
        x[1] = value
        model(x)
        monitor.flush()
        reasons = [r.label.reasons for r in monitor.latest]
        assert reasons == [("expired",), ("not finite",), ("expired",)]
        with torch.no_grad():
            model[0].weight[0, 0] = torch.nan
        model(torch.ones(1, 6))
        monitor.flush()
        assert monitor.latest[0].label.reasons == ("not finite",)


class Skips(nn.Module):
    "Goes around its block where it is told to, or through it twice."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head, self.times = nn.Linear(6, 16), nn.Linear(16, 1), 1

    def forward(self, x):
        h = torch.zeros(len(x), 16)
        for _ in range(self.times):
            h = h + self.block(x)
        return self.head(torch.relu(h))


def test_a_site_that_does_not_come_by_once_makes_the_record_invalid():
    w = table()
    release = Release.from_module(Skips(), w.release.inputs, None, ["block"], device="cpu")
    own = Dictionary((Site("block"),), w.dictionary.weights)
    own = certify(release, own, w.rows)
    with attach(release, own, features=range(8), deferred=False) as m:
        for times in (0, 2, 1):
            release.model.times = times
            release.model(torch.ones(2, 6))
            silent = "hook silent" in m.latest[0].label.reasons
            assert silent == (times != 1)
            assert m.latest[0].heartbeats == {"block:out": times}
        assert m.heartbeats == {"block:out": 3}
    live = copy.deepcopy(release.model)
    live.times = release.model.times + 1
    refused(lambda: attach(release, own, features=[1], model=live), "block:out")


def test_a_worker_that_is_stuck_keeps_no_request_waiting():
    w = table()
    model, go_on = live_of(w), threading.Event()
    given = dict(model=model, features=range(8), every=4, keep=5000)
    with attach(w.release, w.dictionary, **given) as monitor:
        ring = monitor.readings["monitor-last"].ring
        read, x = ring.read, torch.ones(1, 6)
        ring.read = lambda rows: (go_on.wait(20), read(rows))[1]
        for _ in range(200):
            model(x)
        assert len(monitor.records) == 200
        assert all(r.label.reasons == ("not read",) for r in monitor.records)
        assert ring.dropped >= 150
        go_on.set()
        monitor.flush()
        model(x)
        monitor.flush()
        assert monitor.latest[0].label.reasons == ("expired",)
        late = [r for r in monitor.records if r.staleness > 50]
        assert late  # the first ones were read much later, and say so


def test_threads_share_a_model_and_each_has_its_own_records():
    w = language()
    few = range(0, 44, 3)
    model, wrong = live_of(w), []
    expected = [whole(w, i, "monitor-last") for i in range(4)]
    with attach(w.release, w.dictionary, model=model, features=few, every=8) as monitor:

        def serve(k):
            for n in range(24):
                i = (n + k) % 4
                monitor.name(f"{k}-{n}")
                w.release.batch(w.rows.iloc[i : i + 1]).run(model)
                sheet, place, _ = monitor.local.latest
                seen.append((i, f"{k}-{n}", sheet, place))

        seen: list = []
        threads = [threading.Thread(target=serve, args=(k,)) for k in range(3)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        monitor.flush()
        for i, name, sheet, place in seen:
            record = sheet.record(place)
            if record.request != name or not same(record.active, expected[i], few):
                wrong.append(name)
    assert len(seen) == 72
    assert not wrong


# hooks


@pytest.mark.parametrize(
    "given, meant",
    [
        (dict(features=8), "n=8"),
        (dict(budget=2), "Budget("),
        (dict(budget=dict(cpu_pct_mean=2)), "Budget("),
        (dict(within_ms=-3), "within_ms=50"),
        (dict(log="folder"), "AuditLog("),
        (dict(trust="calibration.json"), "Calibration.load("),
        (dict(on_record=3), "records.append"),
    ],
)
def test_what_is_no_part_of_a_monitor_is_refused_and_leaves_the_model_alone(given, meant):
    w = table()
    model = live_of(w)
    wrong = ExitCode.BAD_PARAMETERS
    refused(lambda: attach(w.release, w.dictionary, model=model, **given), meant, code=wrong)
    assert not model._forward_hooks


def test_a_folder_a_bare_module_or_a_wrong_order_says_what_goes_where():
    w, code = table(), ExitCode.BAD_PARAMETERS
    refused(lambda: attach("v1", w.dictionary), "given: str, Dictionary", code=code)
    refused(lambda: attach(w.release.model, w.dictionary), "model=module", code=code)
    refused(lambda: attach(w.dictionary, w.release), "given: Dictionary, Release", code=code)


def test_a_monitor_whose_name_is_lost_can_be_closed_as_its_error_says():
    w = table()
    model = live_of(w)
    attach(w.release, w.dictionary, model=model, features=range(8))
    refused(lambda: attach(w.release, w.dictionary, model=model), "monitor_of(model).close()")
    monitor_of(model).close()
    attach(w.release, w.dictionary, model=model, features=range(8)).close()


class Meeting(nn.Module):
    "A last layer in which a forward can be met."

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.meet = model, None

    def forward(self, x):
        out = self.model(x)
        if self.meet is not None:
            self.meet()
        return out


@pytest.mark.parametrize("deferred", [False, True])
def test_a_forward_that_is_under_way_when_the_monitor_closes_has_its_record(deferred):
    w = table()
    sites = tuple(Site(f"model.{s.module}", s.side) for s in w.dictionary.sites)
    given = w.release.inputs, w.release.decision, sites
    own = Release.from_module(Meeting(live_of(w)), *given)
    dictionary = replace(w.dictionary, sites=sites, targets=sites, validity={}, canary={})
    dictionary = certify(own, dictionary, w.rows)
    x = torch.zeros(3, 6)
    with attach(own, dictionary, features=range(8), deferred=deferred) as m:
        inside, go_on = threading.Event(), threading.Event()
        own.model.meet = lambda: (inside.set(), go_on.wait(60))
        call = threading.Thread(target=own.model, args=(x,))
        call.start()
        assert inside.wait(60)
        closing = threading.Thread(target=m.close)
        closing.start()
        while m.handles:  # until it has begun to close
            pass
        own.model.meet = None
        assert own.model(x).shape == (3, 1) and not m.records  # no request of a closed monitor
        go_on.set()
        call.join(60)
        closing.join(60)
        assert [r.label.reasons for r in m.records] == [("expired",)] * 3
        assert all(r.active for r in m.records) and monitor_of(own.model) is None
    with attach(own, dictionary, features=range(8), deferred=deferred) as m:
        own.model.meet = m.close
        assert own.model(x).shape == (3, 1)
        assert [r.label.reasons for r in m.records] == [("failed",)]
        assert "closed in the forward" in m.records[0].label.details[0]
    own.model.meet = None


def test_copies_of_a_model_report_to_nobody_and_closing_leaves_it_as_it_was():
    w = table()
    model, x = live_of(w), torch.ones(2, 6)
    before = model(x)
    monitor = attach(w.release, w.dictionary, model=model, features=range(8))
    refused(lambda: attach(w.release, w.dictionary, model=model), "close that one first")
    refused(lambda: attach(w.release, w.dictionary, model=nn.Sequential(model)), "close that")
    twin, thawed = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (twin, thawed):
        assert torch.equal(other(x), before)
    assert len(monitor.records) == 0
    with monitor.sleeping():
        model(x)
    assert len(monitor.records) == 0
    attach(w.release, w.dictionary, model=twin, features=range(8)).close()
    refused(lambda: pickle.dumps(monitor), "attach it anew")
    monitor.close()
    monitor.close()
    assert torch.equal(model(x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "closed" in repr(monitor)


def test_a_compiled_model_is_read_or_refused():
    w = table()
    few, x = range(16), w.release.batch(w.rows.head(2)).args[0]
    inner = live_of(w)
    model = torch.compile(inner, backend="eager")
    model(x)  # compiled before the hooks came
    try:
        monitor = attach(w.release, w.dictionary, model=model, features=few, deferred=False)
    except interpkit.core.errors.InterpkitError as e:
        assert "compil" in e.mend
        return
    with monitor:
        model(x)
        for i, record in enumerate(monitor.latest):
            assert same(record.active, whole(w, i, "monitor-last"), few)
        assert monitor.latest[0].heartbeats == {"1:out": 1}
    torch._dynamo.reset()


def test_levels_change_while_the_model_serves():
    w = table()
    model, told = live_of(w), []
    given = dict(model=model, features=range(8), level="off", on_record=told.append)
    with attach(w.release, w.dictionary, **given) as monitor:
        for level in ("off", "monitor", "full", "monitor-last", "off"):
            monitor.level = level
            model(torch.ones(2, 6))
        monitor.flush()
        assert [r.level for r in monitor.records][::2] == [
            *("off", "monitor", "full", "monitor-last", "off")
        ]
        refused(lambda: setattr(monitor, "level", "all"), "monitor", code=ExitCode.BAD_PARAMETERS)
        assert monitor.level == "off"
    assert len(told) == 10  # every answer, once
    assert {r.request for r in told} == {str(i) for i in range(10)}


# refused


def test_what_could_be_silently_wrong_is_refused():
    w, lm = table(), language()
    bare = replace(w.dictionary, validity={}, canary={})
    refused(lambda: attach(w.release, bare), "without certificate")
    refused(lambda: attach(lm.release, w.dictionary), "")
    wrong = live_of(w)
    with torch.no_grad():
        wrong[2].bias += 1e-5
    refused(lambda: attach(w.release, w.dictionary, model=wrong), "2.bias")
    for change in (1e-2, 1e-6):  # in the release itself, since its fingerprint was taken
        own = replace(w.release, model=live_of(w))
        with torch.no_grad():
            own.model[2].bias += change
        refused(lambda r=own: attach(r, w.dictionary), "changed")
        assert standing(own, w.dictionary).reasons == ("another release",)
    refused(lambda: attach(w.release, w.dictionary, features=[10**6]), "features from 0")
    for given in (dict(level="monitro"), dict(every=0), dict(deferred=3), dict(position=0.5)):
        refused(lambda g=given: attach(w.release, w.dictionary, **g), code=64)
    refused(lambda: attach(w.release, w.dictionary, levle="off"), "level", code=64)
    assert not any(m._forward_hooks for m in w.release.model.modules())


class Mean(nn.Module):
    "Averages over positions before it decides."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.block, self.head = (
            nn.Embedding(20, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 1),
        )

    def forward(self, ids):
        return self.head(torch.relu(self.block(self.embed(ids))).mean(1))


def test_a_decision_that_is_read_everywhere_needs_all_positions():
    def inputs(rows):
        return torch.tensor(np.stack(rows["ids"]))

    rows = pd.DataFrame(dict(ids=[[i % 20, 3, (7 * i) % 20, 5] for i in range(40)]))
    rows["sequence_id"] = range(40)
    release = Release.from_module(Mean(), inputs, None, ["block"], device="cpu")
    own = certify(release, Dictionary((Site("block"),), (directions(1, 24),)), rows)
    refused(lambda: attach(release, own, features=[1]), 'level="monitor"', code=64)
    with attach(release, own, features=range(24), level="monitor") as monitor:
        ids = inputs(rows.head(2))
        release.model(ids)
        acts = torch.nn.functional.linear(
            release.model.embed(ids), release.model.block.weight, release.model.block.bias
        )
        codes = own.encode("block", acts).dense().amax(1)
        for record, dense in zip(monitor.latest, codes, strict=True):
            assert sorted(record.active) == dense.nonzero().flatten().tolist()


class OwnMask(Mean):
    "Finds its own padding, of which its arguments say nothing."

    def forward(self, ids):
        real = (ids > 0)[..., None]
        return self.head(
            (torch.relu(self.block(self.embed(ids))) * real).sum(1) / (1 + real.sum(1))
        )


def test_padding_that_no_argument_tells_of_is_not_read_as_if_it_were_real():
    def inputs(rows):
        ids = torch.tensor(np.stack(rows["ids"]))
        return Batch((ids,), mask=ids > 0, n=len(ids))

    rows = pd.DataFrame(dict(ids=[[1 + i % 19, 3, (7 * i) % 20, i % 2] for i in range(40)]))
    rows["sequence_id"] = range(40)
    release = Release.from_module(OwnMask(), inputs, None, ["block"], device="cpu")
    own = certify(release, Dictionary((Site("block"),), (directions(1, 24),)), rows)
    given = dict(features=range(24), level="monitor")
    refused(lambda: attach(release, own, **given), "which positions are padding")


# audits


def test_audits_see_everything_and_only_what_was_taken_is_marked():
    w = language()
    few = range(8)
    with Auditor(w.release, w.dictionary) as auditor:
        given = dict(features=few, level="monitor", audit=auditor, budget=Budget(audit_p=1.0))
        with attach(w.release, w.dictionary, **given) as monitor:
            w.release.batch(w.rows.head(5)).run(w.release.model)
            records = monitor.latest
            monitor.level = "off"
            w.release.batch(w.rows.head(1)).run(w.release.model)
        assert auditor.wait()
        assert all(r.audited and r.weight == 1 for r in records)
        assert len(auditor.results) == 6
        for i, (record, audit) in enumerate(zip(records, auditor.results, strict=False)):
            assert audit.request == record.request
            assert record.active.keys() == audit.active.keys() & set(few)
            expected = whole(w, i, "monitor")
            assert same(audit.active, expected)
            assert all(0 <= e for e in audit.error.values())


def test_an_audit_that_is_stuck_is_dropped_and_counted():
    w = table()
    model, go_on = live_of(w), threading.Event()
    stuck = Auditor(w.release, w.dictionary, capacity=3, fn=lambda *_: go_on.wait(20))
    given = dict(model=model, features=range(8), audit=stuck, budget=Budget(audit_p=1.0))
    with attach(w.release, w.dictionary, **given) as monitor:
        for _ in range(50):
            model(torch.ones(1, 6))
        audited = sum(r.audited for r in monitor.records)
    assert 3 <= audited <= 4
    assert stuck.dropped == 50 - audited
    go_on.set()
    assert stuck.close()


@pytest.mark.slow
def test_a_process_of_its_own_audits():
    w = table()
    with Auditor(w.release, w.dictionary, process=True) as auditor:
        h = torch.rand(4, 16)
        for i in range(3):
            assert auditor.offer(f"{i}", {"1:out": h})
        assert auditor.wait(60)
        expected = w.dictionary.encode("1", h).dense().amax(0)
        assert sorted(auditor.results[0].active) == expected.nonzero().flatten().tolist()
        auditor.worker.terminate()
        auditor.worker.join()
        assert not auditor.offer("late", {"1:out": h})
        assert auditor.dropped == 1
