"What is measured of a dictionary, against formulas written out one sequence at a time."

import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from small_language import BOS, PAD, SITES, V, directions, truth, world
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.evaluate import attributions, evaluate
from interpkit.dictionary.replacement import batch_size, codes_at, in_batches, splice
from interpkit.drift.simulate import small_world
from interpkit.explain.attribution import explain
from interpkit.model.releases import Release
from interpkit.model.sites import Site

# evaluate


def test_evaluate_equals_the_formulas():
    w = world()
    seen = truth("old")
    found = evaluate(w.old, w.dictionary, w.rows)
    weight = w.rows.weight.to_numpy()
    bare, spliced = (np.array([getattr(t, n) for t in seen]) for n in ("decision", "spliced"))
    mean = (weight * bare).sum() / weight.sum()
    assert found["splice_error"] == pytest.approx(
        (weight * (spliced - bare) ** 2).sum() / (weight * (bare - mean) ** 2).sum(), rel=1e-3
    )
    shares, fvu, l0, rates = [], [], [], []
    for k in (0, 1):
        E, A = (
            np.array([x for x in y])
            for y in (
                [t.site[k].error for t in seen],
                [float(t.site[k].at.abs().sum()) for t in seen],
            )
        )
        shares.append((weight * E).sum() / (weight * (A + E)).sum())
        h, r, a = (
            torch.cat([getattr(t.site[k], n)[1:] for t in seen]) for n in ("acts", "recon", "codes")
        )
        fvu.append(float(((h - r) ** 2).sum() / ((h - h.mean(0)) ** 2).sum()))
        l0.append(float((a > 0).sum(1).float().mean()))
        rates.append((a > 0).float().mean(0))
    rates = torch.cat(rates)
    assert found["error_share"] == pytest.approx(max(shares), rel=1e-3)
    assert abs(shares[0] - shares[1]) > 1e-3
    assert found["fvu"] == pytest.approx(np.mean(fvu), rel=1e-4)
    assert found["l0"] == pytest.approx(np.mean(l0), rel=1e-6)
    assert found["dead_share"] == pytest.approx(float((rates == 0).float().mean()))
    assert found["dense_share"] == pytest.approx(float((rates > 0.1).float().mean()))
    assert found["sequences"] == len(w.rows)
    assert found["tokens"] == sum(len(x) - 1 for x in w.rows.input_ids)


def test_attribution_equals_gradient_times_activation():
    w = world()
    seen = truth("old")
    at = attributions(w.old, w.dictionary, w.old.batch(w.rows))
    for i, t in enumerate(seen):
        expected = torch.cat([t.site[k].at for k in (0, 1)], 1)
        assert np.allclose(at.size.toarray()[i], expected.abs().sum(0), atol=2e-3)
        assert np.allclose(at.signed.toarray()[i], expected.sum(0), atol=2e-3)
        assert at.error[i].tolist() == pytest.approx([t.site[k].error for k in (0, 1)], rel=1e-2)
        assert at.mass[i].tolist() == pytest.approx(
            [float(t.site[k].at.abs().sum()) for k in (0, 1)], rel=1e-2
        )
        assert float(at.decision[i]) == pytest.approx(t.decision, abs=1e-4)


def test_splice_runs_all_sites_at_once():
    w = world()
    found = splice(w.old, w.dictionary, w.rows)
    assert found.bare.tolist() == pytest.approx([t.decision for t in truth("old")], abs=1e-4)
    assert found.spliced.tolist() == pytest.approx([t.spliced for t in truth("old")], abs=1e-3)


def test_numbers_on_another_release_are_told_for_what_they_are():
    "`evaluate` gave a splice error of 33 on another release, and said nothing of it."
    w = small_world(100)  # its dictionary is certified for the old release
    for call in (evaluate, explain):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(w.old, w.dictionary, w.rows)
        with pytest.warns(UserWarning, match="another release: what it says there need not"):
            call(w.new, w.dictionary, w.rows)


def test_an_evaluation_is_shown_and_answers_as_a_mapping():
    w = world()
    found = evaluate(w.old, w.dictionary, w.rows)
    assert found["splice_error"] == found.splice_error
    assert json.loads(json.dumps(dict(found))) == found == dict(found)
    assert list(found) == list(found.keys())
    assert len(found) == 8
    assert (found | dict(skip_alone=0.5)) == {**found, "skip_alone": 0.5}
    assert (found | dict(fvu=0.0))["fvu"] == 0.0
    with pytest.raises(KeyError):
        found["table"]
    with pytest.raises(AttributeError):
        found.fvu = 0.0
    assert "splice error" in repr(found)
    assert "\n" not in repr(found)
    assert "<script" not in found._repr_html_()
    assert "of the decision" in found._repr_html_()


# positions that do not count


def test_start_token_and_padding_carry_no_feature():
    w = world()
    batch = w.old.batch(w.rows)
    at = attributions(w.old, w.dictionary, batch)
    for s in SITES:
        loud = w.dictionary.at(s).map(torch.Tensor.clone)
        loud.b_enc.fill_(100.0)  # every feature fires wherever it may
        codes = codes_at(Dictionary((s,), (loud,)), s, at.acts[s], batch).dense()
        for i, ids in enumerate(w.rows.input_ids):
            assert (codes[i, 1 : len(ids)] > 0).all()
            assert not codes[i, 0].any()
            assert not codes[i, len(ids) :].any()


class Masked(nn.Module):
    "Its padding holds NaN, masked away behind the site; the gradient there is NaN too."

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(V, 8), nn.Identity(), nn.Linear(8, 1)

    def forward(self, input_ids, attention_mask):
        h = self.hidden(self.embed(input_ids))
        return self.head(torch.where(attention_mask[..., None] > 0, h * h, 0).sum(1))


def test_padding_may_hold_nan():
    torch.manual_seed(0)
    model = Masked()
    with torch.no_grad():
        model.embed.weight[PAD] = float("nan")
    release = Release.from_module(
        model,
        inputs=dict(kind="tokens", bos=BOS, pad=PAD),
        decision=lambda out: out[:, 0],
        sites=["hidden:out"],
        device="cpu",
    )
    rows = world().rows
    d = Dictionary((Site("hidden"),), (directions(3, 12, 8),))
    together = evaluate(release, d, rows)
    single = [attributions(release, d, release.batch(rows.iloc[[i]])) for i in range(len(rows))]
    assert all(np.isfinite(x) for x in together.values())
    at = attributions(release, d, release.batch(rows))
    alone = np.concatenate([x.size.toarray() for x in single])
    assert np.allclose(at.size.toarray(), alone, atol=1e-5)
    assert torch.allclose(at.error, torch.cat([x.error for x in single]), atol=1e-5)


def test_nan_where_it_counts_is_refused_with_its_row():
    class Broken(Masked):
        def forward(self, input_ids, attention_mask):
            h = self.hidden(self.embed(input_ids))
            real = attention_mask[..., None]
            return self.head((h.nan_to_num(0) * real).sum(1))  # the decision stays finite

    torch.manual_seed(0)
    model = Broken()
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    release = Release.from_module(
        model,
        inputs=dict(kind="tokens", bos=BOS, pad=PAD),
        decision=lambda out: out[:, 0],
        sites=["hidden:out"],
        device="cpu",
    )
    rows = pd.DataFrame(dict(sequence_id=[0, 1, 2], input_ids=[[1, 3, 4], [1, 7, 4], [1, 5]]))
    with pytest.raises(InterpkitError) as e:
        evaluate(release, Dictionary((Site("hidden"),), (directions(3, 12, 8),)), rows)
    assert e.value.code == 65
    assert "row 1 (1 of 3 rows)" in e.value.given
    with pytest.raises(InterpkitError, match="row 1"):
        splice(release, Dictionary((Site("hidden"),), (directions(3, 12, 8),)), rows)


# batches


def test_batches_keep_order_and_size():
    w = world()
    longest = max(map(len, w.rows.input_ids))
    assert batch_size(w.old, w.rows, w.dictionary, 3 * longest * 16) == 3
    assert batch_size(w.old, w.rows, w.dictionary, 1) == 1
    parts = [(p, b) for p, b in in_batches(w.old, w.rows, w.dictionary, limit=3 * longest * 16)]
    assert [p.stop - p.start for p, _ in parts] == [b.n for _, b in parts] == [3] * 4 + [2]
    assert parts[-1][0].stop == len(w.rows)
    with pytest.raises(InterpkitError, match="0 rows"):
        list(in_batches(w.old, w.rows.head(0), w.dictionary))


def test_batches_know_the_positions_of_a_users_own_arguments():
    flat = Release.from_module(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), sites=["1:out"], device="cpu"
    )
    deep = Release.from_module(
        nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)),
        inputs=lambda rows: torch.tensor(rows.to_numpy("float32"))[:, :, None],
        decision=lambda out: out[:, -1, 0],
        sites=["1:out"],
        device="cpu",
    )
    rows = pd.DataFrame(np.zeros((50, 4), "float32"), columns=list("abcd"))
    d = Dictionary((Site("1"),), (directions(3, 10, 8),))
    assert batch_size(flat, rows, d, 160) == 20
    assert batch_size(deep, rows, d, 160) == 5


def test_numbers_do_not_depend_on_batches(monkeypatch):
    w = world()
    once = evaluate(w.old, w.dictionary, w.rows)
    monkeypatch.setattr("interpkit.dictionary.replacement.batch_size", lambda *a: 3)
    assert evaluate(w.old, w.dictionary, w.rows) == pytest.approx(once, rel=1e-4)


def test_an_evaluation_is_a_dict_with_names():
    w = world()
    found = evaluate(w.old, w.dictionary, w.rows)
    assert isinstance(found, dict)
    assert json.loads(json.dumps(found)) == found
    assert found.splice_error == found["splice_error"]
    assert (dict(a=1) | found)["a"] == 1
    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(AttributeError, match="splice_error"):
        found.splice  # noqa: B018
