"""Feature pages, the view of a release and their files, against counts made one by one.

The truth is that of `small_language`: no padding, no batches, plain hooks.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused
from safetensors.numpy import load_file
from scipy import sparse
from small_language import directions, truth, world
from torch import nn

from interpkit.core.errors import ExitCode
from interpkit.core.groups import effective_groups
from interpkit.core.statistics import clopper_pearson
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.drift import segments
from interpkit.drift.scores import score_old, watched_features
from interpkit.drift.simulate import small_world
from interpkit.explain.attribution import explain
from interpkit.explain.collected import WINDOW, collect, groups_in
from interpkit.explain.effects import FEWEST
from interpkit.explain.neighbours import nearest_features
from interpkit.explain.neuronpedia import neuronpedia_json, unembedding
from interpkit.explain.pages import FeaturePages, feature_pages
from interpkit.explain.rankings import (
    attribution_shares,
    buckets_of,
    by_bucket,
    changed_shares,
    drawn_shares,
    rank_interval,
    share_interval,
)
from interpkit.explain.release_view import ReleaseView, release_view
from interpkit.explain.tallies import Histogram, Largest, add_values, enter, entering
from interpkit.model.releases import Release
from interpkit.model.sites import Site


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> FeaturePages:
    w = world()
    rows = w.rows.assign(label=np.arange(14) % 2)
    return feature_pages(
        w.old, w.dictionary, rows, tmp_path_factory.mktemp("p") / "pages", "rows", top=5
    )


def stacked(name: str) -> list[np.ndarray]:  # of each sequence [T, 44]
    "Codes or attributions of both sites side by side, from the truth."
    return [
        np.concatenate([getattr(t.site[k], name).detach().numpy() for k in (0, 1)], 1)
        for t in truth("old")
    ]


# pages


def test_firing_rates_and_effects_are_those_counted_by_hand(pages):
    w, codes, at = world(), stacked("codes"), stacked("at")
    weight = w.rows.weight / w.rows.weight.mean()
    fires = np.array([(c > 0).any(0) for c in codes])
    table = pages.table
    assert np.allclose(table.fires_on, weight @ fires / 14)
    tokens = sum(v * (len(c) - 1) for v, c in zip(weight, codes, strict=True))
    fired = sum(v * (c > 0).sum(0) for v, c in zip(weight, codes, strict=True))
    assert np.allclose(table.rate, fired / tokens)
    last = sum(v * (c[-1] > 0) for v, c in zip(weight, codes, strict=True))
    assert np.allclose(table["last"], last / 14)
    effect = np.array([a.sum(0) for a in at])
    own = weight @ fires
    assert np.allclose(table.effect, (weight @ effect) / np.maximum(own, 1e-9), atol=1e-4)
    size = weight @ np.array([np.abs(a).sum(0) for a in at])
    error = weight @ [t.site[0].error + t.site[1].error for t in truth("old")]
    assert np.allclose(table.share, size / (size.sum() + error), atol=1e-4)
    assert np.allclose(table.largest, np.max([c.max(0) for c in codes], 0), atol=1e-4)


def test_a_page_shows_where_and_for_whom_it_fires(pages):
    w, codes = world(), stacked("codes")
    weight = (w.rows.weight / w.rows.weight.mean()).to_numpy()
    f = int(pages.table.rate.idxmax())
    page = pages[f]
    fired, there = np.zeros(9), np.zeros(9)
    for v, c in zip(weight, codes, strict=True):
        fired[: len(c) - 1] += v * (c[1:, f] > 0)
        there[: len(c) - 1] += v
    kept = there > 0
    assert np.allclose(page.places.rate, fired[kept] / there[kept])
    assert page.activation.tokens.sum() == sum((c[:, f] > 0).sum() for c in codes)
    assert page.effect.sequences.sum() == sum((c[:, f] > 0).any() for c in codes)
    groups = page.groups.set_index(["kind", "group"])
    for name in ("north", "south"):
        member = (w.rows.segment == name).to_numpy()
        fires = np.array([(c[:, f] > 0).any() for c in codes])
        expected = weight[member] @ fires[member] / weight[member].sum()
        assert groups.loc[("segment", name), "fires_on"] == pytest.approx(expected)
    assert groups.loc[("label", "1"), "sequences"] == 7
    assert groups.loc[("all", ""), "share"] == pytest.approx(pages.table.share[f])


def test_the_largest_sequences_are_those_of_a_sort_with_their_windows(pages):
    w, codes, at = world(), stacked("codes"), stacked("at")
    most = np.array([c.max(0) for c in codes])
    for f in range(44):
        shown = pages[f].examples
        order = np.argsort(-most[:, f], kind="stable")[:5]
        assert np.allclose(shown.value, most[order, f][most[order, f] > 0], atol=1e-4)
        for line in shown.itertuples():
            i = w.rows.sequence_id.tolist().index(line.sequence_id)
            assert line.decision == pytest.approx(truth("old")[i].decision, rel=1e-3)
            assert line.effect == pytest.approx(at[i][:, f].sum(), abs=1e-3)
            assert np.allclose(line.activations, codes[i][:, f], atol=1e-4)
            assert line.token == codes[i][:, f].argmax()
            assert line.tokens == [f"token {t}" for t in line.input_ids]


def test_long_sequences_are_shown_around_their_largest_value():
    net = nn.Sequential(nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight.fill_(1), net[0].bias.zero_(), net[2].weight.fill_(1)

    def inputs(rows: pd.DataFrame):
        return torch.tensor(np.array(rows.x.tolist()), dtype=torch.float32)[..., None]

    release = Release.from_module(
        net, inputs, lambda out: out.sum((1, 2)), sites=["1:out"], device="cpu", columns=["x"]
    )
    one = torch.ones(1, 1)
    d = Dictionary(("1:out",), (SiteWeights(one, one[0] * 0, one[0] * 0, one, one[0] * 0),))
    x = np.zeros((3, 300))
    x[0, 7], x[1, 150], x[2, [290, 299]] = 3, 5, (1, 4)
    rows = pd.DataFrame(dict(x=x.tolist(), sequence_id=list("abc")))
    top, places = (c := collect(release, d, rows, top=2)).top, c.places[Site.parse("1:out")]
    assert top.noted["sequence"].tolist() == [[1, 2]]
    assert top.noted["start"].tolist() == [[150 - WINDOW // 2, 300 - WINDOW]]
    window = top.noted["window"][0]
    assert np.flatnonzero(window[0]).tolist() == [WINDOW // 2]
    assert np.flatnonzero(window[1]).tolist() == [290 - 300 + WINDOW, WINDOW - 1]
    assert places.width == 8 and places.tokens.sum() == 900
    assert places.fired[0].nonzero()[0].tolist() == [0, 150 // 8, 290 // 8, 299 // 8]


def test_pages_do_not_depend_on_batches_or_on_the_order_of_rows(pages, tmp_path, monkeypatch):
    w = world()
    rows = w.rows.assign(label=np.arange(14) % 2).sample(frac=1, random_state=1)
    from interpkit.explain import collected

    whole = collected.in_batches
    monkeypatch.setattr(collected, "in_batches", lambda r, x, d, limit: whole(r, x, d, 400))
    again = feature_pages(w.old, w.dictionary, rows, tmp_path / "p", "rows", top=5)
    numbers = pages.table.select_dtypes("number").columns
    assert np.allclose(again.table[numbers], pages.table[numbers], atol=1e-5, equal_nan=True)
    for f in (0, 7, 30):
        assert np.allclose(again[f].examples.value, pages[f].examples.value, atol=1e-5)
        assert again[f].activation.tokens.tolist() == pages[f].activation.tokens.tolist()


def test_an_idle_feature_and_a_small_one_have_pages_too(pages):
    idle = (
        int(np.flatnonzero(pages.table.fires_on == 0)[0])
        if (pages.table.fires_on == 0).any()
        else None
    )
    for f in range(len(pages)):
        page = pages[f]
        assert "<script" not in page._repr_html_() and str(f) in repr(page)
    if idle is not None:
        assert pages[idle].examples.empty and pages[idle].activation.empty
        assert "on none of these sequences" in pages[idle].facts()[-1]


def test_a_clt_has_pages_over_all_its_sources(tmp_path):
    w, rng = world(), torch.Generator().manual_seed(0)
    targets = tuple(Site(f"model.layers.{j}.mlp") for j in (2, 3))
    weights = tuple(
        replace(x, W_dec=0.1 * torch.randn(x.n_features, 2 - j, x.d, generator=rng))
        for j, x in enumerate(w.dictionary.weights)
    )
    labels = w.dictionary.labels
    clt = Dictionary(w.dictionary.sites, weights, labels, wiring="clt", targets=targets)
    pages = feature_pages(w.old, clt, w.rows, tmp_path / "p")
    left = 1 - pages.head["error_share"]
    assert 0 < left < 1 and pages.table.share.sum() == pytest.approx(left)
    explained = explain(w.old, clt, w.rows, top=44)
    weight = w.rows.weight / w.rows.weight.mean()
    effect = np.zeros(44)
    for v, e in zip(weight, explained, strict=True):
        effect[e.features.feature] += v * e.features.attribution
    own = pages.table.effect * pages.table.fires_on * 14
    assert np.allclose(own, effect, atol=1e-4)
    assert set(pages[30].nearest.feature) <= set(range(24, 44))


def test_nearest_decoders_are_those_of_all_pairs():
    d = world().dictionary
    number, cosine = nearest_features(d, 4)
    for site, first in d.offsets.items():
        W = nn.functional.normalize(d.at(site).W_dec[:, 0], dim=1)
        all_pairs = (W @ W.T).fill_diagonal_(-2)
        value, index = all_pairs.topk(4, 1)
        part = slice(first, first + len(W))
        assert np.array_equal(number[part], index.numpy() + first)
        assert np.allclose(cosine[part], value.numpy(), atol=1e-6)


def test_search_finds_words_numbers_and_sites(pages):
    assert pages.search("SITE 1, feature 3").feature.tolist()[0] >= 24
    assert 31 in pages.search("feature 31").feature.tolist()
    assert set(pages.search("layers.0:out").feature) == set(range(24))
    assert pages.search("nothing of the kind").empty
    assert len(pages.search("")) == 44
    assert pages.search("[").empty  # no pattern


def test_lineage_is_read_back_through_all_updates(tmp_path):
    w = world()
    parent = np.full(44, -1)
    parent[[3, 5]] = [8, 5]
    first = dict(
        parent="a" * 64, parent_release="v0", step="polish", identity=dict(parent=parent.tolist())
    )
    whole = list(range(44))
    second = dict(parent="b" * 64, parent_release="v1", step="closed", identity=dict(parent=whole))
    followed = replace(w.dictionary, training=dict(lineage=[first, second]))
    pages = feature_pages(w.old, followed, w.rows, tmp_path / "p")
    assert pages[3].lineage.number.tolist() == [8, 3]
    assert pages[3].lineage.release.tolist() == ["v0", "v1"]
    assert pages[4].lineage.number.tolist() == [4]
    assert pages[3].facts()[-1] == "Before, it was feature 8 in v0, 3 in v1."


# what may be shown


CANARY = "ACCOUNT-4711-OF-ANNA"


def everything(folder) -> str:
    "All that a folder of pages holds, as text."
    parts = [(folder / "pages.json").read_text()]
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file)
        parts += [table.to_pandas().to_csv(), str(table.schema), str(table.schema.metadata)]
    arrays = load_file(folder / "pages.safetensors")
    return "\n".join([*parts, *(f"{n} {x.tolist()}" for n, x in arrays.items())])


@pytest.mark.parametrize("examples", ["ids", "rows", "none"])
def test_a_canary_is_shown_where_rows_may_be_and_nowhere_else(tmp_path, examples):
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    how = dict(inputs=dict(kind="columns", columns=["x"]), sites=["1:out"], device="cpu")
    release = Release.from_module(net, **how)
    eye, zero = torch.eye(2), torch.zeros(2)
    d = Dictionary(("1:out",), (SiteWeights(eye, zero, zero, eye, zero),))
    rows = pd.DataFrame(dict(x=[71.4253, 2.0, 3.0], name=CANARY, group_id=CANARY))
    rows = rows.assign(sequence_id=[CANARY + str(i) for i in range(3)])
    pages = feature_pages(release, d, rows, tmp_path / "p", examples)
    text = everything(tmp_path / "p") + "".join(page._repr_html_() for page in pages)
    assert (CANARY in text) == (examples == "rows")
    assert ("71.42" in text) == (examples == "rows")
    assert (tmp_path / "p" / "sequences.parquet").exists() == (examples != "none")


def test_hashes_follow_the_salt(tmp_path):
    w = world()
    made = [
        feature_pages(w.old, w.dictionary, w.rows, tmp_path / name, salt=salt).sequences.sequence_id
        for name, salt in (("a", "pepper"), ("b", "pepper"), ("c", None), ("d", None))
    ]
    assert made[0].tolist() == made[1].tolist()
    assert len({tuple(x) for x in made}) == 3


def test_pages_are_whole_or_refused(pages, tmp_path):
    w = world()
    again = FeaturePages.load(pages.folder)
    assert again.table.equals(pages.table)
    refused(lambda: feature_pages(w.old, w.dictionary, w.rows, pages.folder), str(pages.folder))
    rows, how = w.rows.assign(label=np.arange(14) % 2), dict(examples="rows", top=5)
    before = (pages.folder / "pages.safetensors").stat().st_ino
    kept = feature_pages(w.old, w.dictionary, rows[::-1], pages.folder, **how)
    assert kept.table.equals(pages.table)
    assert (pages.folder / "pages.safetensors").stat().st_ino == before
    named = replace(w.dictionary, labels=tuple(map(str, range(44))))
    for other in (
        (w.old, named, rows),
        (w.new, w.dictionary, rows),
        (w.old, w.dictionary, rows[1:]),
    ):
        refused(lambda other=other: feature_pages(*other, pages.folder, **how), "exists")
    feature_pages(w.old, w.dictionary, w.rows, tmp_path / "p", "none")
    feature_pages(w.old, w.dictionary, w.rows, tmp_path / "p", "none", overwrite=True)
    head = tmp_path / "p" / "pages.json"
    head.write_text(head.read_text().replace('"none"', '"rows"'))
    refused(lambda: FeaturePages.load(tmp_path / "p"), "pages.json was changed")


def test_what_can_not_be_asked_is_refused(pages, tmp_path):
    w, code = world(), ExitCode.BAD_PARAMETERS

    def ask(**more):
        return lambda: feature_pages(w.old, w.dictionary, w.rows, tmp_path / "x", **more)

    refused(ask(examples="id"), "did you mean 'ids'", code=code)
    refused(ask(top=0), "from 1 to 100", code=code)
    refused(ask(example="ids"), "did you mean 'examples'", code=code)
    refused(lambda: pages[44], "from 0 to 43", code=code)
    refused(lambda: pages[-1], "from 0 to 43", code=code)
    refused(lambda: pages[True], "from 0 to 43", code=code)
    refused(lambda: pages["site 0, feature 99"], "did you mean", code=code)
    assert not (tmp_path / "x").exists()
    none = w.rows.drop(columns="sequence_id")
    refused(lambda: feature_pages(w.old, w.dictionary, none, tmp_path / "x"), "sequence_id")


# odd rows


def small(n: int = 120, features: int = 6) -> tuple[Release, Dictionary, pd.DataFrame]:
    "A release of three columns, a dictionary of random directions, rows."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    columns = dict(kind="columns", columns=["a", "b", "c"])
    release = Release.from_module(net, inputs=columns, sites=["1:out"], device="cpu")
    d = Dictionary(("1:out",), (directions(3, features, 8, 0.05),))
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(n, 3)), columns=list("abc")).astype("float32")
    return release, d, rows.assign(sequence_id=range(n))


def test_odd_ids_missing_segments_and_a_single_feature_are_taken(tmp_path):
    release, d, rows = small()
    odd = rows.assign(
        sequence_id=[("t", i) if i % 2 else i for i in range(120)],
        segment=["x", None, "y"] * 40,
        label=[0, 1, None] * 40,
    )
    pages = feature_pages(release, d, odd, tmp_path / "p", "rows")
    assert pages[0].groups.group.tolist() == ["", "x", "y", "1", "0"]
    view = release_view(release, d, pd.concat([odd] * 5), n_boot=100)
    assert {"segment = x", "segment = y"} < set(view.populations.population)
    assert view.populations.sequences[0] == 600
    one = small(features=1)[1]
    assert len(feature_pages(release, one, rows, tmp_path / "q")[0].nearest) == 0
    alone = release_view(release, one, rows, n_boot=100).of()
    assert alone.share.tolist() == [1] and alone.high.tolist() == [1]


def test_labels_cannot_be_text_and_rows_cannot_be_none(tmp_path):
    release, d, rows = small()
    for call in (lambda r: feature_pages(release, d, r, tmp_path / "p"), view_of(release, d)):
        refused(lambda call=call: call(rows.assign(label="good")), "0, 1 or nothing yet")
        refused(lambda call=call: call(rows.head(0)), "at least one row")
        refused(lambda call=call: call(rows.assign(a=np.float32("nan"))), "finite")


def view_of(release: Release, d: Dictionary):
    return lambda rows: release_view(release, d, rows)


def test_names_are_never_html(tmp_path):
    release, d, rows = small()
    bad = replace(d, labels=tuple(f"<img src=x onerror=alert({i})>" for i in range(6)))
    rows = rows.assign(segment="<script>x</script>", sequence_id=[f"<b>{i}" for i in range(120)])
    pages = feature_pages(release, bad, rows, tmp_path / "p", "rows")
    view = release_view(release, bad, rows, n_boot=100)
    told = [pages[1]._repr_html_(), pages._repr_html_(), view._repr_html_()]
    assert not any(x in html for html in told for x in ("<img", "<script", "<b>"))


def test_many_segments_are_told_together():
    rows = pd.DataFrame(dict(segment=[f"s{i % 40}" for i in range(220)]))
    groups = groups_in(rows)
    assert len(groups) == 22 and groups["segment", "20 smaller ones"].sum() == 100
    assert sum(m.sum() for (kind, _), m in groups.items() if kind == "segment") == 220


def test_a_segment_that_is_one_customer_has_no_name_on_a_page(tmp_path):
    release, d, rows = small()
    rows = rows.assign(segment=["south"] * (len(rows) - 1) + ["canary of one row"])
    feature_pages(release, d, rows, tmp_path / "p", "ids")
    files = [f for f in (tmp_path / "p").rglob("*") if f.is_file()]
    assert files and not any(b"canary of one row" in f.read_bytes() for f in files)


# Neuronpedia

FEATURE = {  # what SAEDashboard's reader of a batch knows of a feature, and of an activation
    *("feature_index", "neuron_alignment_indices", "neuron_alignment_values"),
    *("neuron_alignment_l1", "correlated_neurons_indices", "correlated_neurons_l1"),
    *("correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1"),
    *("correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values"),
    *("frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total"),
    *("n_tokens_in_prompt", "dataset", "activations", "decoder_weights_dist"),
}
ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


def test_dashboards_hold_what_the_reader_of_batches_knows(pages, tmp_path):
    w, codes = world(), stacked("codes")
    made = neuronpedia_json(pages, w.dictionary, tmp_path / "n", w.old, per_file=7)
    for site, first in w.dictionary.offsets.items():
        (folder,) = made.glob(f"*{site.module}")
        files = sorted(folder.glob("batch-*.json"), key=lambda p: int(p.stem[6:]))
        batches = [json.loads(f.read_text()) for f in files]
        assert {b["layer"] for b in batches} == {int(site.module[-1])}
        boards = [f for b in batches for f in b["features"]]
        skipped = json.loads((folder / "skipped_indexes.json").read_text())["skipped_indexes"]
        n = w.dictionary.at(site).n_features
        assert sorted([*skipped, *(f["feature_index"] for f in boards)]) == list(range(n))
        lines = (folder / "explanations.jsonl").read_text().splitlines()
        assert [json.loads(x)["index"] for x in lines] == [str(f["feature_index"]) for f in boards]
        for board in boards:
            own = [c[:, first + board["feature_index"]] for c in codes]
            assert set(board) == FEATURE and len(board["logits_hist_data_bar_values"]) == 50
            assert sum(board["freq_hist_data_bar_heights"]) == sum((x > 0).sum() for x in own)
            most = max(x.max() for x in own)
            for a in board["activations"]:
                assert set(a) == ACTIVATION and len(a["tokens"]) == len(a["values"])
                assert a["values"][a["qualifying_token_index"]] == max(a["values"])
            assert board["activations"][0]["bin_max"] == pytest.approx(most, abs=1e-3)


def test_direct_logits_go_through_the_last_norm_and_the_unembedding():
    model = world().old.model
    h = torch.randn(5, 16)
    gain = model.model.norm.weight * torch.randn(16)
    with torch.no_grad():
        before = model.model.norm.weight.clone()
        model.model.norm.weight.copy_(gain)
        normed = h / (h.pow(2).mean(-1, keepdim=True) + model.model.norm.variance_epsilon).sqrt()
        assert torch.allclose(
            normed @ unembedding(model), model.lm_head(model.model.norm(h)), atol=1e-4
        )
        model.model.norm.weight.copy_(before)


@pytest.mark.parametrize("examples", ["ids", "none"])
def test_dashboards_show_no_sequence_that_pages_may_not(examples, tmp_path):
    release, d, rows = small()
    rows = rows.assign(sequence_id=[CANARY + str(i) for i in range(120)], a=np.float32(71.4253))
    pages = feature_pages(release, d, rows, tmp_path / "p", examples)
    made = neuronpedia_json(pages, d, tmp_path / "n", release)
    text = "".join(f.read_text() for f in made.rglob("*.json*"))
    assert CANARY not in text and "71.42" not in text
    assert all(
        not f["activations"]
        for f in json.loads(next(made.rglob("batch-0.json")).read_text())["features"]
    )


def test_dashboards_of_another_dictionary_or_release_are_refused(pages, tmp_path):
    w, to = world(), tmp_path / "n"
    refused(lambda: neuronpedia_json(pages, w.dictionary.subset([1]), to), "the dictionary")
    refused(lambda: neuronpedia_json(pages, w.dictionary, to, w.new), "the release of the pages")
    code = ExitCode.BAD_PARAMETERS
    refused(lambda: neuronpedia_json(pages, w.dictionary, to, per_file=0), code=code)
    assert not to.exists()


# tallies


def test_histograms_hold_extremes_zeros_and_jumps():
    h = Histogram.empty(2, 16, signed=True)
    add_values(h, np.array([0, 0]), np.array([0.0, 0.0]))
    add_values(h, np.array([0, 1]), np.array([1e-30, -1.0]))
    add_values(h, np.array([0, 1]), np.array([1e30, 2.0]))
    add_values(h, np.array([1]), np.array([-2.0]))
    assert h.counts.sum(1).tolist() == [4, 3]
    assert h.counts[0, 8] == 3 and h.counts[0, 8:].sum() == 4
    edges = (np.arange(17) - 8) * h.width[1]
    assert np.histogram([-1.0, 2.0, -2.0], edges)[0].tolist() == h.counts[1].tolist()


def test_the_largest_of_a_stream_with_ties():
    top = Largest.empty(1, 2, sequence=("int64",))
    for i, value in enumerate([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]):
        new = entering(top, np.array([0]), np.array([value]))
        enter(top, np.zeros(len(new), int), np.full(len(new), value), sequence=np.full(len(new), i))
    assert top.noted["sequence"].tolist() == [[3, 4]]


# the view of a release


def test_the_view_watches_what_a_check_watches():
    w = small_world()
    view = release_view(w.old, w.dictionary, w.rows, n_boot=100)
    scores = score_old(w.old, w.dictionary, w.rows)
    assert view.watched == watched_features(w.dictionary, scores)
    assert FEWEST == segments.LEAST
    own = view.of().set_index("feature").share
    assert np.allclose(own, scores.attribution[own.index])
    alerts = release_view(w.old, w.dictionary, w.rows, n_boot=100, alerts=0.3)
    among = attribution_shares_of(w, 0.3)
    listed = alerts.of("alerts").set_index("feature").share
    assert np.allclose(listed, among[listed.index])


def attribution_shares_of(w, alerts: float) -> np.ndarray:
    return score_old(w.old, w.dictionary, w.rows, alerts).among_alerts


def test_a_view_is_the_same_in_any_order_and_after_a_file(tmp_path):
    w = small_world()
    view = release_view(w.old, w.dictionary, w.rows, n_boot=100)
    again = release_view(w.old, w.dictionary, w.rows.sample(frac=1, random_state=0), n_boot=100)
    numbers = view.table.select_dtypes("number").columns
    assert np.allclose(again.table[numbers], view.table[numbers], atol=1e-6)
    kept = ReleaseView.load(view.save(tmp_path / "v"))
    assert kept.table.equals(view.table) and kept.watched == view.watched
    assert not kept.compared(view).shown.any()
    assert "<script" not in kept._repr_html_()
    assert len(kept.figure(view).axes) == 1


def test_populations_that_are_too_small_are_named_and_not_ranked():
    w = small_world()
    rows = w.rows.assign(part=np.where(np.arange(len(w.rows)) < 30, "few", "many"))
    view = release_view(w.old, w.dictionary, rows, segment="part", n_boot=100)
    assert "part = few" in view.populations.population.tolist()
    assert len(view.of("part = few")) == 0 and len(view.of("part = many"))
    refused(lambda: view.compared(view, "part = few"), "both views rank")
    assert {"all", "part = many"} <= set(view.by_population().columns)


def test_views_through_a_dictionary_that_followed_are_matched_by_lineage():
    w = small_world()
    old = release_view(w.old, w.dictionary, w.rows, n_boot=100)
    order = np.random.default_rng(0).permutation(w.dictionary.n_features)
    (weights,) = w.dictionary.weights
    turned = replace(
        weights, W_enc=weights.W_enc[:, order].contiguous(), b_enc=weights.b_enc[order],
        threshold=weights.threshold[order], W_dec=weights.W_dec[order].contiguous(),
    )  # fmt: skip
    parent = order.copy()
    lost = int(old.of().feature[1])
    parent[parent == lost] = -1
    entry = dict(parent=w.dictionary.fingerprint, parent_release="v1")
    entry["identity"] = dict(parent=parent.tolist())
    child = replace(w.dictionary, weights=(turned,), training=dict(lineage=[entry]), validity={})
    new = release_view(w.old, child, w.rows, n_boot=100)
    table = new.compared(old).set_index("feature")
    came = int(np.flatnonzero(order == lost)[0])
    assert table.old[came] == 0 and table.new[came] > 0
    gone = table.loc[[-1]]
    assert (
        len(gone) == 1
        and gone.new.iloc[0] == 0
        and gone.old.iloc[0] == pytest.approx(table.new[came])
    )
    rest = table.drop(index=[-1, came])
    assert np.allclose(rest.old, rest.new, atol=1e-5) and not rest.shown.any()
    stranger = replace(child, training={})
    other = release_view(w.old, stranger, w.rows, n_boot=100)
    refused(lambda: other.compared(old), "another history")


def test_what_no_view_can_be_made_of_is_refused():
    w, code = small_world(), ExitCode.BAD_PARAMETERS
    view = release_view(w.old, w.dictionary, w.rows, n_boot=100)
    refused(lambda: release_view(w.old, w.dictionary, w.rows, segment="sgment"), code=code)
    refused(lambda: release_view(w.old, w.dictionary, w.rows, n_boot=5), "n_boot", code=code)
    refused(lambda: release_view(w.old, w.dictionary, w.rows, alerts=0.0), code=code)
    refused(lambda: release_view(w.old, w.dictionary, w.rows.head(20), n_boot=100), "20 groups")
    refused(lambda: view.of("alert"), "did you mean 'alerts'", code=code)
    other = release_view(w.old, w.dictionary, w.rows, n_boot=101)
    refused(lambda: view.compared(other), "same samples", code=code)


# error rates


def sizes(rng, n: int = 400) -> sparse.csr_array:
    "Attribution of seven features: skewed, correlated within a row, some alike, some rare."
    row = rng.lognormal(0, 0.7, (n, 1))
    own = rng.lognormal(0, 0.8, (n, 7)) * np.array([6, 4, 4, 4, 2, 1, 1.0])
    own[:, 5:] *= (rng.random((n, 2)) < 0.3) / 0.3
    return sparse.csr_array(row * own)


def test_intervals_of_shares_and_ranks_hold_as_often_as_they_say():
    rng, runs = np.random.default_rng(0), 200
    truth = np.array([6, 4, 4, 4, 2, 1, 1.0]) / 22
    misses, ranks_missed = 0, np.zeros(7)
    for i in range(runs):
        size = sizes(rng)
        share, draws = attribution_shares(size, np.ones(400)), drawn_shares(size, 200, i)
        low, high = share_interval(size, np.arange(7), 200, i).T
        misses += ((truth < low) | (truth > high)).sum()
        for f in range(7):
            a, b = rank_interval(share, draws, f)
            first, last = 1 + (truth > truth[f] + 1e-9).sum(), (truth >= truth[f] - 1e-9).sum()
            ranks_missed[f] += a > last or b < first
    assert clopper_pearson(int(misses), 7 * runs)[0] < 0.05, misses / 7 / runs
    assert clopper_pearson(int(ranks_missed.max()), runs)[0] < 0.05, ranks_missed / runs


def test_buckets_spread_as_groups_do():
    size = sizes(np.random.default_rng(3))
    by_group = drawn_shares(size, 400, 0).std(0)
    bucket = buckets_of(pd.DataFrame(dict(sequence_id=np.arange(400))))
    by_buckets = drawn_shares(by_bucket(size, np.ones(400), bucket), 400, 1).std(0)
    assert np.abs(np.log(by_buckets / by_group)).max() < 0.25


@pytest.mark.parametrize("same", [True, False])
def test_nothing_is_shown_to_have_changed_where_nothing_did(same):
    rng, wrong, found, runs = np.random.default_rng(1), 0, 0, 150
    for i in range(runs):
        old = sizes(rng)
        new = old.copy() if same else sizes(rng)
        if same:  # the same customers, read with noise
            new.data = new.data * rng.lognormal(0, 0.2, new.nnz)
        moved = sparse.csr_array(new.multiply(np.array([1, 1, 2, 1, 1, 1, 1.0])))
        share = [attribution_shares(x, np.ones(400)) for x in (old, new, moved)]
        draws = [drawn_shares(x, 200, i) for x in (old, new, moved)]
        wrong += changed_shares(*share[:2], *draws[:2]).shown.any()
        found += changed_shares(*share[::2], *draws[::2]).shown[2]
    assert clopper_pearson(wrong, runs)[0] < 0.05, wrong / runs
    assert clopper_pearson(found, runs)[1] > 0.9, found / runs


def test_one_error_column_per_population_and_effective_groups_of_lines():
    w = small_world()
    rows = w.rows.assign(group_id=np.arange(len(w.rows)) // 2)
    view = release_view(w.old, w.dictionary, rows, n_boot=100)
    assert view.populations.groups[0] == pytest.approx(len(rows) / 2)
    line = view.of().iloc[0]
    at_most = effective_groups(np.ones((len(rows), 1), bool), np.ones(len(rows)), rows.group_id)[0]
    assert 0 < line.groups <= at_most
    assert line.low <= line.share <= line.high and line.rank_low <= line["rank"] <= line.rank_high
    assert json.dumps(view.populations.to_dict("records"))
