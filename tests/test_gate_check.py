"A check in one call: what it answers, what it refuses, and that it keeps to itself."

import copy
import inspect
import json
import re
import shutil
import socket
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused

from interpkit.core.digests import canonical
from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.core.files import read_json, write_json
from interpkit.data.demo import demo_folder, demo_rows
from interpkit.gate.about import assumed, probability_note
from interpkit.gate.askable import refuse_rows_it_learned
from interpkit.gate.check import KEYWORDS, check, rows_of, schema_notes, training_rows
from interpkit.gate.evidence import verify
from interpkit.gate.policy import Policy
from interpkit.model.releases import Release
from interpkit.training.train import train_dictionary


@pytest.fixture
def given(tiny):
    return dict(old=tiny.v1, new=tiny.v2, data=tiny.data, dictionary=tiny.dictionary_folder)


def test_folders_modules_and_releases_ask_the_same_question(tiny, given):
    loaded = [Release.load(tiny.releases[n]) for n in ("v1", "v2")]
    folders = check(**given).verdict
    live = check(*loaded, tiny.rows, dictionary=tiny.dictionary).verdict
    assert canonical(folders.to_dict()) == canonical(live.to_dict())
    assert (folders.outcome, folders.action) == ("FAIL", "REVIEW")


def test_the_same_rows_in_any_form_are_the_same_rows(tiny, given, tmp_path):
    rows = tiny.rows.reset_index(drop=True)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_feather(tmp_path / "rows.arrow")
    forms = {
        "csv": tmp_path / "rows.csv",
        "arrow file": tmp_path / "rows.arrow",
        "arrow": pa.Table.from_pandas(rows),
        "datasets": datasets.Dataset.from_pandas(rows),
        "rows": rows.to_dict("records"),
        "columns": rows.to_dict("list"),
    }
    whole = rows_of(rows, tiny.old)
    for data in forms.values():
        read = rows_of(data, tiny.old).astype(whole.dtypes.to_dict())
        pd.testing.assert_frame_equal(read, whole, rtol=1e-15)
    told = [
        [(s.name, s.segment, s.ratio) for s in check(**given | dict(data=data)).verdict.statements]
        for data in (rows, forms["rows"])
    ]
    assert told[0] == told[1]
    error = refused(lambda: check(**given | dict(data=rows.to_numpy())), "no names", code=64)
    assert "columns=[" in error.mend


def test_a_limit_may_be_a_number_and_a_label_a_word(given, tiny):
    words = tiny.rows.assign(label=np.where(np.arange(len(tiny.rows)) % 3, "good", "bad"))
    result = check(**given | dict(data=words, label=dict(good=0, bad=1), limits=dict(effect=0.4)))
    assert result.plan.about["whys"] == dict(effect="no reason given")
    effect = next(s for s in result.plan.statements if s.name == "effect" and not s.segment)
    assert effect.limit == 0.4
    assert "label 1" in {s.segment for s in result.plan.statements}
    for wrong in ("40 %", True, None, [0.4]):
        form = refused(lambda w=wrong: check(**given, limits=dict(effect=w)), code=64)
        assert "{'limit': 0.2" in form.asked, wrong
    assert "{'splice_error'" in refused(lambda: check(**given, limits=0.4), code=64).asked


def test_what_is_assumed_and_what_looks_like_a_probability_is_said(tiny):
    squashed = torch.nn.Sequential(*copy.deepcopy(tiny.old.model), torch.nn.Sigmoid())
    live = Release.from_module(squashed, sites=["1:out"], name="squashed")
    rows = tiny.rows[["sequence_id", *(f"x{i}" for i in range(6))]]
    live.run(rows)  # which settles what was assumed
    assert probability_note(live, rows).startswith("Decisions of squashed lie between 0 and 1")
    assert "x0, x1, x2, x3, x4, x5, in this order" in assumed(live)
    named = Release.from_module(
        squashed, dict(kind="columns", columns=list(rows)[1:]), dict(kind="scalar"), ["1:out"]
    )
    named.run(rows)
    assert assumed(named) == ""
    assert probability_note(tiny.old, tiny.rows) == ""
    flags = Release.from_module(squashed, decision=lambda out: (out[:, 0] > 0.5).float())
    assert probability_note(flags, rows) == ""  # nothing to take a logit of
    pinned = Release.from_module(tiny.old.model, decision=dict(kind="top_two"), device="cpu")
    assert "logit_difference" in probability_note(pinned, tiny.rows)


def test_a_release_passes_against_itself_and_one_of_another_width_is_to_retrain(given, tiny):
    assert check(**given | dict(new=tiny.v1)).action == "REUSE"
    wide = check(**given | dict(new=tiny.wide))
    assert wide.action == "RETRAIN"
    assert wide.verdict.exit_code == 10
    assert "24 wide" in wide.verdict.notes[0]


def test_two_releases_of_one_name_are_told_apart_in_every_line(given, tiny):
    twin = replace(Release.load(tiny.wide), name=Release.load(given["old"]).name)
    page = str(check(**given | dict(new=twin)))
    name = re.escape(twin.name)
    assert f"{twin.name} ({twin.fingerprint[:6]})" in page.splitlines()[0]
    assert not re.search(rf"\b{name}\b(?! \()", page)


def test_another_function_of_another_width_is_to_review(given, tiny):
    other = check(**given | dict(new=tiny.other))
    assert other.action == "REVIEW"
    assert "24 wide" in other.verdict.notes[0]


def test_too_few_sequences_are_inconclusive_and_say_how_many_more(given, tiny, parquet):
    result = check(**given | dict(new=tiny.v1, data=parquet(tiny.rows.head(30))))
    assert result.verdict.outcome == "INCONCLUSIVE"
    assert result.action == "COLLECT"
    assert result.verdict.exit_code == 11
    assert result.verdict.collect > 30
    assert not any(row["settles"] for row in result.preview)


def test_a_release_whose_modules_were_renamed_is_the_same_release(tiny, given, tmp_path):
    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(*copy.deepcopy(tiny.old.model)[:2])
            self.head = copy.deepcopy(tiny.old.model)[2]

        def forward(self, x):
            return self.head(self.body(x))

    nested = Release.from_module(Nested(), tiny.old.inputs, sites=["body.1:out"], name="v2")
    asked = given | dict(new=nested)
    error = refused(lambda: check(**asked, out=tmp_path / "out"), "nothing could be measured")
    assert '"1" = "body.1"' in error.mend
    assert not (tmp_path / "out").exists()
    names = {"0": "body.0", "1": "body.1", "2": "head"}
    for new_sites in (names, {"1:out": "body.1:out"}):
        result = check(**asked, new_sites=new_sites)
        assert result.action == "REUSE"
        assert {s.outcome for s in result.verdict.statements} == {"PASS"}
        counts = ("active features", "splice error", "error share")
        changed = [s.ratio for s in result.verdict.statements if s.name not in counts]
        assert max(changed) < 1e-6
    assert "body.7" in refused(lambda: check(**asked, new_sites={"1": "body.7"})).given


def test_a_dictionary_is_not_judged_by_the_rows_that_it_learned(tiny, given):
    learned = train_dictionary(tiny.old, tiny.rows.head(400), tokens=2000, n_features=16, k=4)
    trained = given | dict(dictionary=learned)
    for rows in (tiny.rows.head(400), tiny.rows, tiny.rows.iloc[300:600]):
        refused(lambda rows=rows: check(**trained | dict(data=rows)), "not trained on")
    by_digest = {k: v for k, v in learned.training.items() if k != "seen"}
    older = replace(learned, training=by_digest)
    refused(lambda: check(**trained | dict(dictionary=older, data=tiny.rows.head(400))), "100 %")
    others = tiny.rows.tail(600)
    refuse_rows_it_learned(learned, others, tiny.old.inputs_columns)
    refuse_rows_it_learned(learned, tiny.rows.tail(620), tiny.old.inputs_columns)  # 20 of them
    same_names = others.assign(sequence_id=tiny.rows.sequence_id.head(600).to_numpy())
    refuse_rows_it_learned(learned, same_names, tiny.old.inputs_columns)  # rows are counted from 0


def test_rows_are_called_as_policy_or_release_say(given, tiny, tmp_path):
    "What a page says is derived again from the evidence, word by word."
    assert "1,000 rows through both" in str(check(**given))
    how = dict(inputs=tiny.old.inputs.spec(), decision=dict(kind="scalar"), sites=["1:out"])
    live = Release.from_module(tiny.old.model, **how, name="v1", row="loan", device="cpu")
    saved = live.save(tmp_path / "v1", factory=import_module("tiny_fraud").build)
    assert saved.row.many == "loans" and saved.fingerprint == tiny.old.fingerprint
    assert check(**given | dict(old=saved)).plan.about["row"]["one"] == "loan"
    head = read_json(tmp_path / "v1" / "release.json")
    (tmp_path / "v1" / "manifest.json").unlink()
    write_json(tmp_path / "v1" / "release.json", head | dict(row=["<b>", "x"]))
    refused(lambda: Release.load(tmp_path / "v1"), "in release.json", code=65)
    for words, row in (("people", ["person", "people"]), ("clients", "client")):
        result = check(**given, row=row, examples="rows", out=tmp_path / words)
        assert result.plan.about["row"]["many"] == words
        assert f"1,000 {words} through both" in str(result)
        page = (tmp_path / words / "report.html").read_text()
        assert f"1,000 {words} in 1,000 groups" in page
        assert verify(tmp_path / words).verdict.headline == result.verdict.headline
    for wrong in ("<b>", "feature", ["person"], 3):
        refused(lambda w=wrong: check(**given, row=w), "row", code=64)


def test_alerts_and_threshold_are_those_of_the_policy(given, tiny):
    result = check(**given, alerts=0.3, threshold=0.4)
    assert result.plan.segments["alerts"] == len(result.plan.alerts) == 300
    assert result.plan.about["threshold"] == 0.4
    behaviour = result.printed["behaviour"]
    old, new = (Release.load(tiny.releases[n]).run(tiny.rows) > 0.4 for n in ("v1", "v2"))
    assert behaviour["flipped"] == pytest.approx(float((old != new).float().mean()))
    without = check(**given, alerts=0)
    assert "alerts" not in without.plan.segments
    assert without.plan.alerts == ()
    reasons = result.reasons
    features = reasons[reasons.kind == "feature"].set_index("name")
    assert features.lost.is_monotonic_decreasing
    assert 0.9 < features.lost.sum() <= 1 + 1e-9  # ten of sixteen hold nearly all of it
    known = tiny.dictionary.label_table().set_index("label")["fires_on"]
    assert features.fires_on.equals(known[features.index].rename_axis("name"))
    assert set(reasons[reasons.kind == "input"].name) <= {f"x{i}" for i in range(6)}


def test_a_change_of_the_alerts_alone_is_to_review(tiny, given):
    "Above the highest tenth of the old decisions, another rule decides about as high as before."

    class Hidden(torch.nn.Module):
        def __init__(self, bound):
            super().__init__()
            self.net, self.bound = copy.deepcopy(tiny.old.model), bound

        def forward(self, x):
            was = self.net(x)
            other = self.bound + (x[:, :1] - x[:, 1:2]).abs() * 0.1
            return torch.where(was > self.bound, other, was)

    highest = float(tiny.old.run(tiny.rows).quantile(0.9))
    hidden = Release.from_module(
        Hidden(highest), tiny.old.inputs, sites=["net.1:out"], name="hidden"
    )
    asked = given | dict(new=hidden, new_sites={"1": "net.1"})
    found = check(**asked).verdict
    assert found.action == "REVIEW"
    assert found.statement("inputs", "alerts").outcome == "FAIL"
    assert found.statement("inputs", "alerts").ratio > 2 * found.statement("inputs").ratio


def banded(tiny):
    "Four segments of 20 sequences, where x5 is near 0; and a release that is v1 but for them."

    class Hidden(torch.nn.Module):
        def __init__(self, bound, usual):
            super().__init__()
            self.net, self.bound, self.usual = copy.deepcopy(tiny.old.model), bound, usual

        def forward(self, x):
            other = self.usual + 0.05 * (x[:, :1] - x[:, 1:2])
            return torch.where(x[:, 5:].abs() < self.bound, other, self.net(x))

    away = tiny.rows.x5.abs().to_numpy()
    order = np.argsort(away, kind="stable")
    segment = np.full(1000, "main", object)
    for i in range(4):
        segment[order[20 * i : 20 * i + 20]] = f"band {i}"
    model = Hidden(float(away[order[79:81]].mean()), float(tiny.old.run(tiny.rows).mean()))
    hidden = Release.from_module(model, tiny.old.inputs, sites=["net.1:out"], name="hidden")
    return tiny.rows.assign(segment=segment), dict(new=hidden, new_sites={"1": "net.1"}, alerts=0)


def test_a_change_of_rare_segments_is_seen_where_they_are_pooled(tiny, given):
    "Eight in a hundred sequences are decided by another rule: apart, nobody looks there."
    rows, attack = banded(tiny)
    asked = given | attack | dict(data=rows)
    apart = check(**asked)
    assert apart.plan.too_small == {f"band {i}": 20 for i in range(4)}
    assert apart.action == "REUSE"
    assert 'decide nothing: "band 0" (20); "band 1" (20)' in str(apart)
    together = check(**asked, pool="rare bands")
    assert together.plan.too_small == {}
    assert together.verdict.statement("inputs", "rare bands").outcome == "FAIL"
    assert together.action == "REVIEW"
    page = str(together)
    assert 'asked together as "rare bands": "band 0" (20), "band 1" (20), "band 2" (20)' in page
    assert '1 fails: "rare bands"' in page
    same = check(**asked | dict(new=tiny.v1, new_sites=None), pool="rare bands")
    assert same.action == "REUSE" and "PASS in each of the 2 segments." in str(same)
    refused(lambda: check(**asked, pool="main"), "pool = 'main'", code=64)


BROKEN = {
    "no file": (lambda t, p: dict(data="nowhere.parquet"), "nowhere.parquet"),
    "no parquet": (lambda t, p: dict(data=str(t.at / "tiny_fraud.py")), "parquet"),
    "no rows": (lambda t, p: dict(data=p(t.rows.head(0))), "0 rows"),
    "NaN": (
        lambda t, p: dict(data=p(t.rows.assign(x2=t.rows.x2.where(t.rows.index != 7)))),
        "row 7",
    ),
    "text in a number's column": (lambda t, p: dict(data=p(t.rows.assign(x2="much"))), "x2"),
    "an id twice": (lambda t, p: dict(data=p(t.rows.assign(sequence_id="a"))), "row 1"),
    "a column missing": (lambda t, p: dict(data=p(t.rows.drop(columns="x3"))), "'x3'"),
    "no release": (lambda t, p: dict(new="./nowhere"), "nowhere"),
    "no dictionary": (lambda t, p: dict(dictionary="./nowhere"), "nowhere"),
    "a segment named like a built-in one": (
        lambda t, p: dict(data=p(t.rows.assign(segment="alerts"))),
        "'alerts'",
    ),
    "a release as dictionary": (lambda t, p: dict(dictionary=t.v1), "release folder"),
    "another release's dictionary": (lambda t, p: dict(old=t.v2), "dictionary made for 'v1'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_input_is_named_and_leaves_nothing(tiny, given, parquet, tmp_path, what):
    broken, named = BROKEN[what]
    asked = given | broken(tiny, parquet)
    refused(lambda: check(**asked, out=tmp_path / "out"), named)
    assert not (tmp_path / "out").exists()


def test_rows_of_another_tokenizer_are_named(parquet):
    demo = demo_folder()
    rows = demo_rows("v1", 80)
    ids = list(rows["input_ids"])
    ids[7] = [*ids[7][:3], 5000, *ids[7][4:]]
    error = refused(
        lambda: check(
            demo / "releases/v1",
            demo / "releases/v1-tail",
            parquet(rows.assign(input_ids=ids)),
            dictionary=demo / "dictionary",
        )
    )
    assert "row 7" in error.given
    assert "tokenizer" in error.mend


SPOILT = {
    "missing": lambda f: f.unlink(),
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-40]),
    "changed": lambda f: f.write_bytes(f.read_bytes()[:-4] + b"\0\0\0\1"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_weights_that_are_missing_cut_or_changed_are_named(tiny, given, tmp_path, what):
    release = tmp_path / what
    shutil.copytree(tiny.v2, release)
    SPOILT[what](release / "model.safetensors")
    refused(lambda: check(**given | dict(new=str(release))), "model.safetensors")


def test_an_unknown_argument_site_or_watched_feature_is_named(given):
    bad = ExitCode.BAD_PARAMETERS
    assert "'watched'" in refused(lambda: check(**given, watchd=["unit 3"]), code=bad).mend
    assert "unit 3" in refused(lambda: check(**given, watched=["unti 3"]), code=bad).mend
    untrained = given | dict(dictionary=None)
    assert "1" in refused(lambda: check(**untrained, sites=["9:out"])).mend


def test_a_check_names_the_keywords_of_a_policy(given):
    named = inspect.signature(check).parameters
    of_a_run = {"serve"}  # jobs that follow `ipk check`
    assert set(KEYWORDS) == set(Policy.model_fields) - {"decision", "new"} - of_a_run
    assert named["new_sites"].default is None
    assert set(KEYWORDS) <= set(named)
    assert all(named[name].default is None for name in KEYWORDS)


def test_a_keyword_goes_before_the_policy_and_none_says_nothing(given):
    policy = dict(draws=3, seed=5)
    plan = check(**given, policy=policy, draws=2, seed=None).plan
    assert (plan.draws, plan.seed) == (2, 5)


def test_nan_decisions_of_the_new_release_are_no_verdict(tiny, given):
    model = copy.deepcopy(tiny.old.model)
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
    broken = Release.from_module(model, sites=["1:out"], name="broken")
    error = refused(lambda: check(**given | dict(new=broken)))
    assert "finite decisions" in error.asked


def test_a_check_opens_no_connection(given, monkeypatch, tmp_path):
    def no(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no)
    monkeypatch.setattr(socket, "create_connection", no)
    monkeypatch.setattr(socket, "getaddrinfo", no)
    check(**given, out=tmp_path / "out")


def test_a_dictionary_is_trained_on_other_sequences_than_those_that_are_checked(tiny):
    learn, rest = training_rows(tiny.rows)
    assert not set(learn.sequence_id) & set(rest.sequence_id)
    assert len(learn) + len(rest) == len(tiny.rows)
    assert 0.4 < len(learn) / len(tiny.rows) < 0.6
    with pytest.raises(InterpkitError, match="stand in both"):
        training_rows(tiny.rows, tiny.rows.head(3))
    given, checked = training_rows(tiny.rows.tail(500), tiny.rows.head(100))
    assert len(given) == 100
    assert len(checked) == 500


def test_customers_are_not_split_between_training_and_check(tiny):
    rows = tiny.rows.assign(group_id=[f"c{i // 3}" for i in range(len(tiny.rows))])
    learn, rest = training_rows(rows)
    assert not set(learn.group_id) & set(rest.group_id)


def test_a_check_without_a_dictionary_trains_one_says_so_and_keeps_it(tiny, tmp_path, capsys):
    rng = np.random.default_rng(0)
    columns = [f"x{i}" for i in range(6)]
    rows = pd.DataFrame(rng.normal(size=(3000, 6)).astype("float32"), columns=columns)
    rows["sequence_id"] = [f"n{i}" for i in range(3000)]
    result = check(
        tiny.v1,
        tiny.v1,
        rows,
        out=tmp_path / "out",
        training=dict(n_features=64, k=12, tokens=300_000),
    )
    assert "No dictionary given" in capsys.readouterr().out
    assert result.passed
    assert (tmp_path / "out" / "dictionary" / "validity.json").exists()
    assert result.dictionary.validity["fingerprint"] == tiny.old.fingerprint
    assert len(result.table[result.table.statement == "effect"]) < 1700


def test_changed_columns_and_vocabularies_are_named(tiny, tmp_path):
    def release(name, columns, vocabulary=None):
        folder = None
        if vocabulary:
            folder = tmp_path / name
            folder.mkdir()
            (folder / "vocab.json").write_text(json.dumps(vocabulary))
        return SimpleNamespace(name=name, inputs_columns=columns, folder=folder, vocabulary=None)

    assert schema_notes(release("a", ["x", "y"]), release("b", ["y", "z"])) == [
        "b no longer reads the column 'x'",
        "b also reads the column 'z'",
    ]
    notes = schema_notes(
        release("v1", None, {"<pad>": 0, "grocery": 1, "fuel": 2}),
        release("v2", None, {"<pad>": 0, "fuel": 1, "crypto": 2}),
    )
    assert notes == [
        "the vocabulary of v2 lacks tokens: 'grocery'",
        "the vocabulary of v2 has new tokens: 'crypto'",
        "the vocabulary of v2 gives other ids to tokens: 'fuel'",
    ]


SECRET = "PLANTED-7f3a91"


@pytest.fixture
def planted(tiny):
    rows = tiny.rows.copy()
    rows["sequence_id"] = [f"{SECRET}-{i}" for i in range(len(rows))]
    rows["group_id"] = [f"{SECRET}-customer-{i // 2}" for i in range(len(rows))]
    rows["comment"] = SECRET
    rows["x4"] = rows["x4"].where(rows.index % 5 != 0, 0.31415927)
    return rows


def texts(folder):
    for p in folder.rglob("*"):
        if p.is_file():
            yield p, p.read_bytes()


@pytest.mark.parametrize("examples", ["ids", "none"])
def test_no_customer_leaves_the_run_folder(given, planted, tmp_path, examples):
    result = check(**given | dict(data=planted), out=tmp_path / "out", examples=examples)
    for path, data in texts(tmp_path / "out"):
        if path.suffix == ".parquet":
            data = pq.read_table(path).to_pandas().to_csv().encode()
        assert SECRET.encode() not in data, path
        assert b"0.3141592" not in data, path
    assert SECRET not in str(result)
    assert SECRET not in result._repr_html_()
    assert bool(result.printed["examples"]) == (examples == "ids")


def test_rows_are_shown_where_a_team_asks_for_them(given, planted, tmp_path):
    result = check(**given | dict(data=planted), out=tmp_path / "out", examples="rows")
    examples = next(iter(result.printed["examples"].values()))
    assert examples[0]["row"]["sequence_id"].startswith(SECRET)
    assert SECRET in (tmp_path / "out" / "report.html").read_text()
