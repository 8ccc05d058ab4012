"""The committed releases of the demo are what `demo/truth.json` says.

And the recipes of their traffic keep customers apart.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interpkit.adapt.maps import fit_map
from interpkit.adapt.paired import paired_activations
from interpkit.core.digests import digest_file
from interpkit.core.errors import ExitCode
from interpkit.core.files import read_json
from interpkit.data.checksets import check_digest, read_check_set
from interpkit.data.demo import DEMO, PURPOSES, demo_folder, demo_quarter, demo_rows
from interpkit.data.world import FRAUD, LEGIT, RULE
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.validity import certify, verify_canary
from interpkit.drift.behaviour import auc
from interpkit.drift.limits import Limits
from interpkit.drift.plan import plan_check
from interpkit.drift.scores import fit_or_raise, score_old
from interpkit.model.releases import Release


@pytest.fixture(scope="module")
def folder():
    return demo_folder()


@pytest.fixture(scope="module")
def truth(folder):
    return read_json(folder / "truth.json")


@pytest.fixture(scope="module")
def releases(folder):
    return {n: Release.load(folder / "releases" / n, device="cpu") for n in DEMO}


@pytest.fixture(scope="module")
def dictionary(folder, releases):
    return Dictionary.load(folder / "dictionary", releases["v1"])


# The folder
def test_every_file_is_the_one_that_truth_names(folder, truth):
    found = {
        p.relative_to(folder).as_posix(): digest_file(p)
        for p in folder.rglob("*")
        if p.is_file() and p.name != "truth.json"
    }
    assert found == truth["files"]


def test_releases_are_small_and_of_their_own_shape(folder, releases):
    for n, r in releases.items():
        assert (folder / "releases" / n / "model.safetensors").stat().st_size <= 2e6
        assert r.name == n
        assert [str(s) for s in r.default_sites] == ["model.layers.1:out"]
        assert r.for_sign_off
        assert not torch.equal(r.model.lm_head.weight, r.model.model.embed_tokens.weight)
        assert r.decision.spec() == dict(kind="logit_difference", positive=FRAUD, negative=LEGIT)
    assert len({r.fingerprint for r in releases.values()}) == len(DEMO)
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 11e6


def test_truth_says_nothing_of_the_machine_it_was_made_on(folder):
    text = (folder / "truth.json").read_text()
    assert not any(word in text for word in ("/home", "/work", "/tmp", "host", "date"))


def test_rounded_release_is_v1_rounded(releases):
    v1, rounded = (releases[n].model.state_dict() for n in ("v1", "v1-bf16"))
    assert all(torch.equal(rounded[n], v1[n].to(torch.bfloat16).float()) for n in v1)
    assert any(not torch.equal(rounded[n], v1[n]) for n in v1)


def test_concept_release_changed_only_above_the_site(releases):
    v1, concept = (releases[n].model.state_dict() for n in ("v1", "v2-concept"))
    changed = {n for n in v1 if not torch.equal(v1[n], concept[n])}
    assert changed
    assert not any(
        n.startswith(("model.embed_tokens", "model.layers.0.", "model.layers.1.")) for n in changed
    )
    assert {n.split(".")[2] for n in changed if n.startswith("model.layers")} == {"2", "3"}


def test_rotated_release_decides_as_v1_and_is_read_in_other_units(releases, dictionary):
    v1, turned = releases["v1"], releases["v2-rotated"]
    rows = demo_rows("v2-rotated", 300)
    site = dictionary.sites[0]
    before, after = (r.run(rows) for r in (v1, turned))
    assert (before - after).abs().max() < 1e-4
    both = paired_activations(v1, turned, rows, [site], tokens=2048)
    moved = fit_map(both.old[site], both.new[site], both.held(site))
    eye = torch.eye(64)
    assert (moved.A @ moved.A.T - eye).abs().max() < 1e-3  # orthogonal
    assert (moved.A - eye).abs().max() > 0.5
    assert moved.rest < 1e-9
    l0 = [dictionary.encode(site, h).l0 for h in (both.old[site], both.new[site])]
    assert l0[1] > 3 * l0[0]  # the old dictionary reads noise


def test_rotated_release_has_the_logits_of_v1_at_every_token(releases):
    tokens = torch.as_tensor(demo_quarter("v2-rotated", 100).tokens)
    with torch.no_grad():
        before, after = (releases[n].model(tokens).logits for n in ("v1", "v2-rotated"))
    assert (before - after).abs().max() < 2e-4


def test_rotated_release_is_v1_with_every_matrix_turned(releases):
    def read_and_written(model):
        "What each matrix makes of the embeddings, and what it writes towards them."
        W = {n: w.double() for n, w in model.state_dict().items()}
        embedded = W["model.embed_tokens.weight"]
        found = {"lm_head": (W["lm_head.weight"] * W["model.norm.weight"]) @ embedded.T}
        for n, w in W.items():
            if n.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                found[n] = (
                    w * W[f"{n.split('.self_attn')[0]}.input_layernorm.weight"]
                ) @ embedded.T
            elif n.endswith(("gate_proj.weight", "up_proj.weight")):
                norm = f"{n.split('.mlp')[0]}.post_attention_layernorm.weight"
                found[n] = (w * W[norm]) @ embedded.T
            elif n.endswith(("o_proj.weight", "down_proj.weight")):
                found[n] = embedded @ w
        return found

    before, after = (read_and_written(releases[n].model) for n in ("v1", "v2-rotated"))
    assert len(before) == 1 + 4 * 7
    for n in before:
        assert torch.allclose(before[n], after[n], atol=1e-4), n
    turned = releases["v2-rotated"].model.state_dict()
    assert all((w == 1).all() for n, w in turned.items() if "norm" in n)


def test_no_folder_says_how_to_get_it(tmp_path):
    refused(lambda: demo_folder(tmp_path), "make bench NAME=demo_releases")


# What was learned
@pytest.mark.parametrize("name", ["v1", "v2", "v2-concept"])
def test_releases_know_more_than_a_table_of_counts(name, releases, truth):
    held = demo_quarter(name, 3000, "truth", seed=7)
    learn = demo_quarter(name, 6000, "train", seed=7)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        learn.features, learn.label
    )
    own = auc(held.label, releases[name].run(held.rows).numpy())
    counts = auc(held.label, logistic.decision_function(held.features))
    most = auc(held.label, held.score)
    assert counts + 0.02 < own < most
    assert abs(own - truth["releases"][name]["auc"]["new"]) < 0.03
    if name != "v1":
        assert own > auc(held.label, releases["v1"].run(held.rows).numpy()) + 0.01


def test_truth_tells_the_four_apart(truth):
    changed = {n: truth["releases"][n]["shares"]["effect"] for n in DEMO if n != "v1"}
    assert changed["v1-bf16"]["upper"] < changed["v1-tail"]["lower"]
    assert changed["v1-tail"]["upper"] < 0.25
    assert changed["v2"]["lower"] > 0.25
    assert changed["v2-concept"]["lower"] > 0.25
    assert truth["releases"]["v2-concept"]["shares"]["activation"]["share"] == 0
    for n in changed:
        full = truth["releases"][n]["full_ablation"]
        assert full["lower"] * 0.9 < changed[n]["share"] < full["upper"] * 1.1


# The dictionary
def test_dictionary_belongs_to_v1_and_is_fit(dictionary, releases):
    verify_canary(releases["v1"], dictionary)
    measured = dictionary.validity["measured"]
    assert measured["splice_error"] < 0.01
    assert measured["error_share"] < 0.05
    assert measured["dead_share"] < 0.5
    refused(lambda: verify_canary(releases["v2"], dictionary), "made for 'v1'")
    named = dictionary.label_table().precision.dropna()
    assert len(named) >= 50
    assert (named >= 0.8).all()  # on sequences that did not choose the name


def _spoilt(dictionary, how):
    w = dictionary.weights[0]
    g = torch.Generator().manual_seed(0)
    if how == "permuted encoder":
        i = torch.randperm(w.n_features, generator=g)
        spoilt = replace(w, W_enc=w.W_enc[:, i], b_enc=w.b_enc[i], threshold=w.threshold[i])
    else:
        rows = torch.nn.functional.normalize(torch.randn(w.W_dec[:, 0].shape, generator=g), dim=1)
        spoilt = replace(w, W_dec=rows, W_enc=rows.T.contiguous())
    return replace(dictionary, weights=(spoilt,))


def test_the_dictionary_is_fit_for_other_rows(dictionary, releases):
    fit_or_raise(dictionary, score_old(releases["v1"], dictionary, demo_rows("v1", 300)), Limits())


@pytest.mark.parametrize("how", ["permuted encoder", "random directions"])
def test_spoilt_dictionaries_are_refused(how, dictionary, releases):
    rows = demo_rows("v1", 120)
    spoilt = certify(releases["v1"], _spoilt(dictionary, how), rows)
    refused(lambda: plan_check(releases["v1"], spoilt, rows), "unfit")


# The traffic
def test_traffic_is_the_same_in_every_call_and_a_valid_check_set():
    for n in DEMO:
        a = demo_rows(n, 200, annotated=True)
        b = demo_rows(n, 200, annotated=True)
        assert check_digest(a) == check_digest(b)
        assert len(read_check_set(a, ["input_ids"])) == 200


def test_no_customer_serves_two_purposes():
    served = product(DEMO, PURPOSES, (0, 1, 2))
    rows = [demo_rows(name, 100, purpose, seed=seed) for name, purpose, seed in served]
    people = pd.concat([r.group_id.drop_duplicates() for r in rows])
    assert people.is_unique
    events = pd.concat([r.input_ids.map(tuple).drop_duplicates() for r in rows])
    assert events.duplicated().mean() < 1e-3


def test_concept_quarter_has_old_inputs_and_another_rule():
    before, concept, later = (demo_quarter(n, 4000) for n in ("v1", "v2-concept", "v2"))

    def far(a, b):
        moved = np.abs(a.features.mean() - b.features.mean())
        return moved.div(a.features.std() + 1e-9).max()

    def old_rule(quarter):
        return auc(quarter.label, sum(RULE[c] * quarter.causes[c] for c in RULE))

    assert far(before, concept) < 0.06
    assert far(before, later) > 0.3
    assert old_rule(concept) < 0.75
    assert old_rule(before) > 0.8


@pytest.mark.parametrize("bad", [dict(name="v3"), dict(purpose="fun"), dict(seed=-1)])
def test_what_is_not_in_the_table_is_refused(bad):
    refused(lambda: demo_rows(**dict(name="v1", n=10) | bad), code=ExitCode.BAD_PARAMETERS)
