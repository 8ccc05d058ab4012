"Boards without a browser: what they know, what they answer, what they show where nobody clicks."

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import refused
from small_boards import large_dictionary, many_sequences

import interpkit
from interpkit.core.errors import ExitCode
from interpkit.core.views import board
from interpkit.lab import board as boards
from interpkit.lab.board import Board, as_json, module_of, plain
from interpkit.lab.feature_browser import Asked, FeatureBrowser, fitting
from interpkit.lab.training_board import TrainingBoard
from interpkit.lab.verdict_board import VerdictBoard, parts_of

NASTY = "</script><img src=x onerror=alert(1)>\u2028"


@pytest.fixture(scope="module")
def dictionary():
    return large_dictionary(800)


@pytest.fixture(scope="module")
def verdict():
    "A verdict with its table."
    from interpkit.drift.measure import measure
    from interpkit.drift.plan import plan_check
    from interpkit.drift.simulate import small_world
    from interpkit.drift.statements import decide
    from interpkit.drift.verdict import judge

    world = small_world(n=300)
    given = (world.old, world.new, world.dictionary, world.rows)
    plan, _ = plan_check(world.old, world.dictionary, world.rows, new=dict(name="v2"))
    table = measure(*given, plan)
    return judge(decide(table, plan), plan, table), table


# The door


@pytest.mark.parametrize("name", interpkit._BOARDS)
def test_every_board_is_where_the_door_says_and_has_its_module(name):
    assert issubclass(board(name), Board)
    assert board(name).name == name
    assert module_of(name).count("export default { render }") == 1


def test_a_board_that_is_none_is_named():
    refused(lambda: board("grap"), "graph", code=ExitCode.BAD_PARAMETERS)


def test_boards_are_reached_from_what_they_show(dictionary, verdict):
    assert isinstance(dictionary.browse(), FeatureBrowser)
    assert isinstance(verdict[0].explore(), VerdictBoard)


def test_nothing_of_a_widget_is_imported_before_somebody_looks():
    code = (
        "import sys, interpkit.lab.board, interpkit.drift.verdict; "
        "print({'anywidget', 'ipywidgets', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr


# Modules


@pytest.mark.parametrize("name", interpkit._BOARDS)
def test_a_module_loads_nothing_and_writes_no_markup(name):
    text = module_of(name).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(
        r"https?://|\bimport\b\s*[({'\"*]|innerHTML|insertAdjacentHTML|eval\(", text
    )


# In a front end


class Kernel:
    _allow_stdin = True


@pytest.fixture
def live(monkeypatch):
    "A kernel that somebody types at."
    monkeypatch.setattr(boards, "is_live", lambda: True)
    monkeypatch.setattr(boards, "typed_at", lambda: True)


WIDGET = "application/vnd.jupyter.widget-view+json"


def test_a_live_front_end_gets_widget_and_page_in_one_bundle(live, dictionary):
    pytest.importorskip("anywidget")
    shown = FeatureBrowser(dictionary)
    data = shown._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html", WIDGET}
    assert data[WIDGET]["model_id"] == shown.widget.model_id
    assert "<script" not in data["text/html"]


def test_a_run_that_nobody_sees_gets_the_page_and_one_line_that_says_why(dictionary):
    data = FeatureBrowser(dictionary)._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html"}
    assert "run the cell in JupyterLab" in data["text/html"]


def test_without_anywidget_the_line_says_what_to_install(live, monkeypatch, dictionary):
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    data = FeatureBrowser(dictionary)._repr_mimebundle_()
    assert WIDGET not in data
    assert "pip install 'interpkit-notebooks[lab]'" in data["text/html"].replace("&#x27;", "'")


def test_a_question_that_fails_is_told_and_not_raised(dictionary):
    reply = FeatureBrowser(dictionary).reply(dict(id=1, what="page", args=dict(feature=800)))
    assert "a feature" not in reply.get("answer", "") and "800" in reply["error"]
    assert "error" in FeatureBrowser(dictionary).reply(dict(id=2, what="__init__", args={}))


def test_a_notebook_that_nobody_sits_at_stores_no_widget(monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("IPK_PROGRESS", raising=False)
    cell = nbformat.v4.new_code_cell("from interpkit.lab.board import Board\nBoard()")
    nb = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(nb, timeout=120, kernel_name="python3").execute()
    assert set(nb.cells[0].outputs[0].data) == {"text/plain", "text/html"}
    assert "widgets" not in nb.metadata


# Files


def test_a_file_holds_data_that_ends_no_script(tmp_path, dictionary):
    from dataclasses import replace

    labels = (NASTY, *dictionary.labels[1:])
    shown = FeatureBrowser(replace(dictionary, labels=labels, figures=()))
    file = shown.to_html(tmp_path / "features.html")
    text = file.read_text()
    assert text.count("</script>") == 2 and "<img" not in text
    state = re.search(r"id='state'>(.*?)</script>", text, re.S)[1]
    assert json.loads(state)["table"]["label"][0] == NASTY
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=['\"]?https?:", text)


def test_json_for_a_browser_knows_no_nan():
    assert json.loads(as_json(dict(x=[np.nan, np.inf, np.float32(0.5)]))) == dict(
        x=[None, None, 0.5]
    )
    assert plain({1: pd.NA}) == {"1": "<NA>"} and plain(np.array([True])) == [True]


# Features


def by_hand(table, words="", site="", least=0.0):
    "Features that fit, by a loop."
    found = []
    for r in table.itertuples():
        fits = all(w in f"{r.label} {r.best_inputs}".lower() for w in words.lower().split())
        if fits and (not site or r.site == site) and (r.fires_on or 0) >= least:
            found.append(r.feature)
    return found


@pytest.mark.parametrize("words", ["", "abroad", "NIGHT travel", "unnamed", "nothing at all"])
@pytest.mark.parametrize("site", ["", "model.layers.2:out"])
def test_search_finds_what_a_loop_finds(dictionary, words, site):
    table = FeatureBrowser(dictionary).table
    asked = Asked(query=words, site=site, least=0.02)
    assert fitting(table, asked).tolist() == by_hand(table, words, site, 0.02)


@pytest.mark.parametrize("down", [False, True])
def test_the_unknown_comes_last_in_any_order(dictionary, down):
    table = FeatureBrowser(dictionary).table
    order = table["precision"].to_numpy()[fitting(table, Asked(sort="precision", down=down))]
    known = order[~np.isnan(order)]
    assert np.isnan(order[len(known) :]).all() and len(known) == 600
    assert (np.diff(known) <= 0).all() if down else (np.diff(known) >= 0).all()


def test_kinds_part_the_features(dictionary):
    table = FeatureBrowser(dictionary).table
    named, unnamed = (fitting(table, Asked(kind=k)) for k in ("named", "unnamed"))
    assert len(named) == 600 and len(unnamed) == 200
    assert (table.fires_on.iloc[fitting(table, Asked(kind="silent"))] == 0).all()
    assert fitting(table, Asked("#77")).tolist() == [77] == fitting(table, Asked("77")).tolist()


def test_pages_of_rows_join_to_the_whole(dictionary):
    shown = FeatureBrowser(dictionary)
    asked = dict(query="abroad", sort="fires_on", down=True)
    whole = shown.rows(**asked, **{"from": 0, "to": 10**6})
    parts = [shown.rows(**asked, **{"from": i, "to": i + 7}) for i in range(0, whole["total"], 7)]
    assert [r for p in parts for r in p["rows"]] == whole["rows"]


def test_neighbours_are_those_of_largest_cosine(dictionary):
    shown = FeatureBrowser(dictionary)
    near = shown.near(405)
    decoders = dictionary.weights[1].W_dec.flatten(1).numpy()
    cosine = decoders @ decoders[5] / np.linalg.norm(decoders, axis=1) / np.linalg.norm(decoders[5])
    cosine[5] = -2
    assert [n["feature"] for n in near] == (400 + np.argsort(-cosine)[:8]).tolist()


def test_pages_of_another_dictionary_are_refused(dictionary):
    class Pages:
        head = dict(dictionary="another")

    refused(lambda: FeatureBrowser(dictionary, Pages()), "pages of")


# Sequences


def test_sequences_are_served_by_page_in_their_order(verdict):
    v, table = verdict
    shown = VerdictBoard(v, many_sequences(table[table.statement == "effect"], 40))
    asked = dict(name="effect", segment="", query="", sort="lost", down=True)
    first = shown.sequences(**asked, **{"from": 0, "to": 100})
    rest = shown.sequences(**asked, **{"from": 11_900, "to": 12_000})
    assert first["total"] == 12_000 and len(rest["rows"]) == 100
    parts = [r["part"] for r in first["rows"]]
    assert parts == sorted(parts, reverse=True) and parts[0] >= rest["rows"][0]["part"]
    found = shown.sequences(**asked | dict(query="-007"), **{"from": 0, "to": 1})
    assert found["total"] == 300


def test_parts_of_a_change_are_those_of_the_statement(verdict):
    v, table = verdict
    rows = table[(table.statement == "effect") & (table.segment == "")]
    parts = parts_of(rows)
    assert abs(parts.part.sum() - 1) < 1e-9
    largest = rows.sequence.iloc[(rows.numerator * rows.weight).to_numpy().argmax()]
    assert parts.sequence[parts.part.idxmax()] == largest
    share = (rows.numerator * rows.weight).sum() / (rows.denominator * rows.weight).sum()
    assert abs(share - v.statement("effect").ratio) < 1e-6


def test_old_beside_new_is_what_the_table_says(verdict):
    v, table = verdict
    shown = VerdictBoard(v, table)
    own = table[(table.statement == "decisions") & (table.segment == "")].iloc[7]
    told = shown.sequence(str(own.sequence))["parts"][0]
    assert told["title"] == "Decision" and told["rows"][0]["was"] == own.base
    assert told["rows"][0]["now"] == own.base + own.change
    assert shown.sequence("unheard of")["parts"] == []


def test_the_table_of_another_check_is_refused(verdict):
    v, table = verdict
    halved = table.assign(numerator=table.numerator / 2)
    refused(lambda: VerdictBoard(v, halved), "the table of this check")


def test_a_verdict_alone_shows_its_statements(verdict):
    v, _ = verdict
    shown = v.explore()
    assert shown.state()["sequences"] is False
    assert shown.sequences("effect", "", "", "lost", True, **{"from": 0, "to": 9})["total"] == 0
    assert v.headline.split(":")[0].replace(">", "&gt;") in shown.fallback()


# Training


def rows_until(step, of=10):
    told = dict(site="1:out", steps=of, fvu=0.1, l0=3.0, dead_share=0.0, loss=0.1)
    return [
        told | dict(step=i, tokens=64 * i, tokens_per_second=9, seconds_left=1)
        for i in range(1, step)
    ]


def test_a_stopped_training_goes_on_and_its_result_is_kept():
    runs = []

    def train(watch):
        runs.append(len(runs))
        for row in rows_until(11):
            watch(row)
        return "a dictionary"

    shown = TrainingBoard(train)
    shown.asked_to_stop.set()
    shown.status = "running"
    shown.run()
    assert shown.status == "stopped" and shown.result is None and len(shown.rows) == 1
    shown.start()
    assert shown.wait(20) == "a dictionary"
    assert shown.status == "done" and runs == [0, 1] and len(shown.rows) == 10


def test_a_training_that_fails_says_why():
    def train(watch):
        raise ValueError("no rows")

    shown = TrainingBoard(train)
    shown.start()
    shown.wait(20)
    assert shown.status == "failed" and "no rows" in shown.now()["words"]


def test_a_board_that_only_watches_starts_nothing():
    shown = TrainingBoard()
    for row in rows_until(11):
        shown(row)
    assert shown.status == "done" and shown.now()["can_start"] is False
    refused(shown.start, "train", code=ExitCode.BAD_PARAMETERS)
