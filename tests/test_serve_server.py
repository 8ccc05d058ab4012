"A real server on loopback: load by a second process, faults inside, a label on every answer."

import json
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import COLUMNS
from helpers import refused

from interpkit.core.errors import ExitCode
from interpkit.model.releases import Release
from interpkit.serve.audits import Auditor
from interpkit.serve.chain import log_files, verify_log
from interpkit.serve.costs import Cost, Costs
from interpkit.serve.levels import LEVELS, Budget
from interpkit.serve.log import AuditLog, read_log
from interpkit.serve.monitored import monitored
from interpkit.serve.records import REASONS, TrustLabel

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from interpkit.serve.served import app_of  # noqa: E402
from interpkit.serve.service import Service  # noqa: E402


@contextmanager
def serving(service):
    "A function that calls the service over HTTP: status and JSON (text, where it is none)."
    server = uvicorn.Server(uvicorn.Config(app_of(service), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]

    def call(path, body=None, raw=None):
        data = raw if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data, head)
        try:
            with urllib.request.urlopen(asked, timeout=60) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as e:
            status, text = e.code, e.read().decode()
        return status, json.loads(text) if text.startswith("{") else text

    call.port = port
    try:
        yield call
    finally:
        server.should_exit = True
        thread.join()
        service.close()


@pytest.fixture
def make(tiny, tmp_path):
    "A service around a fresh copy of v1, with its log; `rows` as they are sent."
    logs = []

    def service(on_full="stop", **kw):
        release = Release.load(tiny.v1)
        logs.append(AuditLog(tmp_path / f"log-{len(logs)}", on_full=on_full))
        kw = dict(look_every=None) | kw
        return Service(release, tiny.dictionary, log=logs[-1], **kw)

    yield service
    for log in logs:
        log.close()


def rows_of(tiny, n=20) -> list[dict]:
    return tiny.rows[COLUMNS].head(n).to_dict("records")


def samples(text: str) -> dict:
    "What Prometheus reads of a scrape: (name, labels) -> value."
    families = text_string_to_metric_families(text)
    return {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}


LOAD = """
import json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
port, at_once, n, rows = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.load(sys.stdin)
def ask(i):
    body = json.dumps(dict(row=rows[i % len(rows)], request=f"r{i}")).encode()
    head = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/decide", body, head)
    with urllib.request.urlopen(asked, timeout=120) as response:
        return json.load(response)
with ThreadPoolExecutor(at_once) as pool:
    json.dump(list(pool.map(ask, range(n))), sys.stdout)
"""


def load(port, rows, n, at_once=8) -> list[dict]:
    "What a second process gets that asks `n` times, some at once."
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(port), str(at_once), str(n)],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def priced(**added) -> Costs:
    "Costs of levels that add so many percent to a forward of 1 ms."
    rows = []
    for name, pct in added.items():
        us = dict(added_us=10.0 * pct, added_p99_us=10.0 * pct, bare_p99_us=1000.0, cpu_pct=pct)
        rows.append(Cost(name.replace("_", "-"), 1, 1, coverage=0.7, features=16, **us))
    return Costs(tuple(rows))


def test_every_answer_under_load_from_another_process_has_a_label(tiny, make):
    budget = Budget(added_latency_pct=50, cpu_pct_mean=None)
    costs = priced(monitor_last=2.0, monitor=20.0)
    service, rows = make(budget=budget, costs=costs), rows_of(tiny)
    bare = tiny.old.run(tiny.rows.head(20)).tolist()
    with serving(service) as call:
        answers = load(call.port, rows, 150)
        assert service.log.flush(30)
        status, text = call("metrics")
        _, health = call("health")
    for i, answer in enumerate(answers):
        assert answer["request"] == f"r{i}"
        assert answer["decision"] == pytest.approx(bare[i % 20], rel=1e-4, abs=1e-5)
        assert answer["label"]["kind"] in ("ABSTAIN", "INVALID") and answer["label"]["reasons"]
        assert answer["level"] in LEVELS
    told = samples(text)
    levels = Counter(a["level"] for a in answers)
    kept = read_log(service.log.chain.folder)
    assert Counter(kept["level"]) == levels and set(kept["request"]) == {
        f"r{i}" for i in range(150)
    }
    for level, n in levels.items():
        seen = sum(v for k, v in told.items() if k[0] == "interpkit_answers_total" and level in k)
        assert seen == n == told["interpkit_service_seconds_count", level]
    assert told["interpkit_level_changes_total",] == len(read_log(service.log.chain.folder, "note"))
    assert told["interpkit_log_lost_total",] == 0 and told["interpkit_log_writes",] == 1
    head = tuple(health["log"]["head"])
    assert verify_log(service.log.chain.folder, head=head).lost == 0


def test_decisions_are_bare_while_explanations_take_reasons_away(tiny, make):
    service, rows = make(), rows_of(tiny)
    bare = tiny.old.run(tiny.rows.head(20)).tolist()
    with serving(service) as call:
        done = []
        explaining = threading.Thread(
            target=lambda: done.extend(call("explain", dict(row=row)) for row in rows[:6])
        )
        explaining.start()
        answers = load(call.port, rows, 60, at_once=2)
        explaining.join()
    for i, answer in enumerate(answers):
        assert answer["decision"] == pytest.approx(bare[i % 20], rel=1e-5, abs=1e-6)
    assert len(done) == 6
    for status, told in done:
        trusted = told["label"]["kind"] == "TRUSTED"
        assert status == 200 and trusted == bool(told["words"]) == ("reasons" in told)
        assert trusted or told["inputs"]


def test_an_explanation_is_what_ablation_measures_and_is_logged(tiny, make):
    service, row = make(), rows_of(tiny)[3]
    with serving(service) as call:
        _, told = call("explain", dict(row=row, request="a"))
        assert service.log.flush()
    frame = pd.DataFrame([row | dict(sequence_id="a")])
    from interpkit.serve.answers import answer

    (own,) = answer(tiny.old, tiny.dictionary, frame)
    assert told["decision"] == pytest.approx(own.decision, rel=1e-5)
    assert told["label"]["kind"] == own.label.kind
    note = read_log(service.log.chain.folder, "note").iloc[-1]
    assert note["request"] == "a" and note["features"] == own.feature.tolist()
    assert note["effects"] == pytest.approx(own.effect.tolist(), rel=1e-4, abs=1e-6)
    text = log_files(service.log.chain.folder)[0].read_text()
    assert not any(name and name in text for name in COLUMNS)


def test_weights_that_are_no_numbers_give_labels_and_no_error(tiny, make):
    service, row = make(level="monitor"), rows_of(tiny)[0]
    with serving(service) as call:
        with torch.no_grad():
            service.release.model[0].weight.fill_(float("nan"))
        answers = load(call.port, [row], 20)
        assert {a["decision"] for a in answers} == {None}
        assert all("not finite" in a["label"]["reasons"] for a in answers)
        service.monitor.level = "off"  # nothing is read, and the decision still is none
        _, off = call("decide", dict(row=row))
        assert off["label"]["kind"] == "INVALID" and "not finite" in off["label"]["reasons"]
        service.look()
        assert call("explain", dict(row=row))[0] == 503


def test_other_weights_in_a_running_service_are_found_and_nothing_is_explained(tiny, make):
    service, row = make(look_every=0.02), rows_of(tiny)[0]
    with serving(service) as call:
        assert call("health")[1]["status"] == "ok"
        service.release.model.load_state_dict(Release.load(tiny.v2).model.state_dict())
        while service.standing.trusted:
            threading.Event().wait(0.01)
        _, decided = call("decide", dict(row=row))
        status, explained = call("explain", dict(row=row))
    assert "another release" in decided["label"]["reasons"]
    assert decided["decision"] is not None
    assert status == 503 and explained["label"]["reasons"] == ["another release"]
    assert explained["words"] == []
    v2 = Release.load(tiny.v2)
    refused(lambda: Service(v2, tiny.dictionary, look_every=None))


def test_what_is_no_part_of_a_service_is_refused(tiny, make):
    code = ExitCode.BAD_PARAMETERS
    refused(lambda: Service("v1", "dictionary"), "Service(release, dictionary", code=code)
    refused(lambda: make(budget=Budget(), costs="budget.json"), "Costs.load(", code=code)
    refused(lambda: make(budget=2), "Budget(", code=code)
    refused(lambda: make(limits=0.1), "TrustLimits(", code=code)
    refused(lambda: make(featurs=[1]), "'features'", code=code)
    release = Release.load(tiny.v1)
    refused(lambda: Service(release, tiny.dictionary, log="folder"), "AuditLog(", code=code)


@pytest.mark.parametrize("kind", ["table", "series", "list"])
def test_what_is_no_row_is_refused_with_the_line_that_makes_one(tiny, make, kind):
    other = dict(table=tiny.rows.head(1), series=tiny.rows.iloc[0], list=[1.0])[kind]
    service, code = make(), ExitCode.BAD_PARAMETERS
    refused(lambda: service.decide(other), "to_dict()", code=code)
    refused(lambda: service.explain(other), "to_dict()", code=code)
    service.close()


def test_the_guide_tells_every_reason_of_a_label():
    guide = (Path(__file__).parents[1] / "nbs" / "guide.md").read_text()
    told = guide[guide.index("## Interpretation while requests") :].split("\n## ")[0]
    assert not [r for kind in REASONS.values() for r in kind if f"({r})" not in told]


def test_a_service_says_how_it_stands(make):
    service = make()
    assert repr(service) == f"Service({service.release.name}, monitor-last; ok)"
    service.close()
    assert "closed" in repr(service)


def test_a_body_with_another_field_or_a_missing_number_is_told_so(tiny, make):
    (row,) = rows_of(tiny, 1)
    with serving(make()) as call:
        assert "requst" in call("decide", dict(row=row, requst="7"))[1]["given"]
        assert "row" in call("decide", dict(request="7"))[1]["given"]
        status, told = call("decide", dict(row=row | {COLUMNS[0]: None}))
    assert status == 422 and f"missing in {COLUMNS[0]}" in told["given"]


class Labels:
    "Labels records as a calibration does, and fails once `breaks` is set."

    features, breaks = list(range(16)), False

    def scores(self, active, decision):
        return {}

    def predict(self, scores):
        return {}["no label"] if self.breaks else TrustLabel()


def lose_room(log):
    "Let the log find that somebody else wrote into its file, so that it can't go on."
    assert log.flush()
    with open(log_files(log.chain.folder)[-1], "a") as file:
        file.write("x\n")
    log.note("anything")
    while not log.trouble:
        threading.Event().wait(0.01)


@pytest.mark.filterwarnings("ignore:.*were not written")
@pytest.mark.parametrize("policy", ["stop", "count"])
def test_what_can_not_be_logged_is_withheld_or_counted(tiny, make, policy):
    service, row = make(on_full=policy), rows_of(tiny)[0]
    with serving(service) as call:
        lose_room(service.log)
        _, decided = call("decide", dict(row=row))
        status, explained = call("explain", dict(row=row))
        _, health = call("health")
        told = samples(call("metrics")[1])
    assert decided["decision"] is not None and told["interpkit_log_writes",] == 0
    stops = policy == "stop"
    assert ("failed" in decided["label"]["reasons"]) == stops
    assert (status == 503) == stops and (explained["words"] == [] or not stops)
    assert (health["status"] != "ok") == stops


def test_where_the_budget_is_exhausted_and_fails_closed_explanations_are_withheld(tiny, make):
    budget = Budget(50, None, None, min_coverage=0.5, on_exhaust="fail closed")
    watched = monitored(tiny.old, tiny.dictionary, tiny.rows.head(200), n=16)
    service = make(budget=budget, costs=priced(monitor_last=2.0), features=watched)
    row = rows_of(tiny)[0]
    with serving(service) as call:
        assert call("explain", dict(row=row))[0] == 200
        for i in range(2000):  # a queue that only grows
            service.controller.level(i * 1e-6, queue=i)
        _, decided = call("decide", dict(row=row))
        status, told = call("explain", dict(row=row))
    assert status == 503 and told["label"]["reasons"] == ["not read"]
    assert "coverage" in told["label"]["details"][0]
    assert decided["decision"] is not None and decided["level"] == "off"


def test_a_monitor_that_is_gone_leaves_no_answer_without_a_label(tiny, make):
    service, row = make(), rows_of(tiny)[0]
    with serving(service) as call:
        call("decide", dict(row=row))
        service.monitor.close()
        answers = load(call.port, [row], 10)
        assert service.log.flush()
    assert all(a["label"]["reasons"] == ["failed"] for a in answers)
    assert len(read_log(service.log.chain.folder)) == 11


def test_a_stuck_audit_worker_is_told_and_nobody_waits_for_it(tiny, make):
    stuck = threading.Event()
    audit = Auditor(tiny.old, tiny.dictionary, capacity=2, fn=lambda *seen: stuck.wait())
    budget = Budget(added_latency_pct=None, cpu_pct_mean=None, audit_p=1.0)
    service = make(budget=budget, costs=priced(monitor_last=2.0), audit=audit)
    with serving(service) as call:
        answers = load(call.port, rows_of(tiny), 40)
        told = samples(call("metrics")[1])
    audited = [a for a in answers if a["level"] != "off"]  # the bare arm leaves nothing to audit
    assert all(a["label"]["reasons"] for a in answers) and len(audited) >= 20
    assert told["interpkit_audits_dropped_total",] == audit.dropped >= len(audited) - 4
    stuck.set()
    audit.close()


def test_an_error_of_whoever_labels_records_is_a_label_and_no_error(tiny, make):
    labels = Labels()
    service = make(trust=labels)
    labels.breaks = True
    with serving(service) as call:
        answers = load(call.port, rows_of(tiny), 10)
        assert service.log.flush()
    assert all(a["label"]["reasons"] == ["failed"] and a["decision"] for a in answers)
    assert list(read_log(service.log.chain.folder)["reasons"]) == ["failed"] * 10


def test_a_calibrated_label_reaches_response_log_and_metrics(tiny, make):
    service = make(trust=Labels(), level="monitor-last")
    with serving(service) as call:
        _, decided = call("decide", dict(row=rows_of(tiny)[0]))
        told = samples(call("metrics")[1])
        assert service.log.flush()
    assert decided["label"] == dict(kind="TRUSTED", reasons=[], details=[])
    assert told["interpkit_answers_total", "TRUSTED", "monitor-last"] == 1
    assert list(read_log(service.log.chain.folder)["label"]) == ["TRUSTED"]


def test_requests_that_are_none_are_told_what_mends_them_and_do_no_harm(tiny, make):
    service, row = make(), rows_of(tiny)[0]
    wrong = [
        dict(row={}),
        dict(row={k: v for k, v in row.items() if k != "x3"}),
        dict(row=row | dict(x3="a lot")),
        dict(row=row | dict(x3=None)),
        dict(row=row | dict(x3=[1, 2])),
        dict(rows=row),
        dict(row=row, level="full"),
        dict(row=[1, 2]),
    ]
    with serving(service) as call:
        for body in wrong:
            for path in ("decide", "explain"):
                status, told = call(path, body)
                assert status == 422, (path, body, told)
                assert told["asked"] and told["given"] and told["mend"]
                assert told["label"]["kind"] == "INVALID"
        assert call("decide", raw=b"{nonsense")[0] == 422
        assert call("decide")[0] == 405 and call("nothing")[0] == 404
        assert call("decide", dict(row=row))[0] == 200
        assert service.log.flush() and service.waiting == 0
    assert len(read_log(service.log.chain.folder)) == 1


def test_ids_of_any_form_are_served_and_logged_and_no_response_is_without_label(tiny, make):
    service, row = make(), rows_of(tiny)[0]
    with serving(service) as call:
        assert service.decide(row, "\ud800").decision is not None
        for name in ("a\nb", "", '"'):
            status, told = call("decide", dict(row=row, request=name))
            assert status == 200 and told["label"]["kind"] and told["decision"] is not None
        for name in ("x" * 1000, "\ud800"):
            assert call("decide", dict(row=row, request=name))[0] == 422
        deep = b'{"row":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        for status, told in (call("decide", raw=deep), call("decide"), call("decides", {})):
            assert status in (400, 404, 405, 422) and told["label"]["reasons"] == ["failed"]
        assert service.log.flush()
    assert len(read_log(service.log.chain.folder)) == 4


def test_costs_of_another_model_or_of_other_features_choose_no_level(tiny, make):
    costs = replace(priced(monitor_last=0.5), monitored={"16": list(range(16))})
    refused(lambda: make(budget=Budget(), costs=replace(costs, dictionary="0" * 64)), "costs of")
    foreign = replace(costs, release=dict(name="v0", fingerprint="0" * 64))
    refused(lambda: make(budget=Budget(), costs=foreign), "costs of")
    more = dict(budget=Budget(), costs=costs, features=range(20))
    refused(lambda: make(**more), "costs of 16 features", code=ExitCode.BAD_PARAMETERS)
    service = make(budget=Budget(), costs=costs)
    assert service.monitor.setup.chosen.features.tolist() == list(range(16))
    service.close()


def test_spans_tell_levels_and_labels_and_nothing_of_the_request(tiny, make):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = make(tracer=provider.get_tracer("test"))
    row = rows_of(tiny)[0]
    service.decide(row, "customer 4711")
    service.explain(row, "customer 4711")
    refused(lambda: service.decide({"x0": 1.0}), code=ExitCode.INVALID)
    service.close()
    decide, explain, *_ = exporter.get_finished_spans()
    assert (decide.name, explain.name) == ("interpkit.decide", "interpkit.explain")
    assert decide.attributes["interpkit.level"] == "monitor-last"
    assert decide.attributes["interpkit.label"] == "INVALID"
    assert list(decide.attributes["interpkit.reasons"]) == ["expired"]
    text = decide.to_json() + explain.to_json()
    assert "4711" not in text and str(row["x0"])[:6] not in text


def test_without_the_extra_an_error_names_it(tmp_path):
    code = """
    import sys
    sys.modules["prometheus_client"] = None
    import interpkit.serve.controller, interpkit.serve.log
    assert "torch" not in sys.modules
    try:
        import interpkit.serve.metrics
    except interpkit.core.errors.InterpkitError as e:
        print(e.mend)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "pip install 'interpkit-notebooks[serve]'"
