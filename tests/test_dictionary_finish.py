"The finish on the task: it lowers what it should on rows it never saw, leaves the model alone, and keeps L0."
import math

import pytest
import torch

from interpkit.core.errors import InterpkitError
from interpkit.data.demo import demo_folder, demo_rows
from interpkit.dictionary.evaluate import evaluate, replaced_output, run_replaced
from interpkit.dictionary.finish import finish, task_loss
from interpkit.dictionary.train import train_dictionary
from interpkit.dictionary.validity import verify_canary
from interpkit.model.releases import Release

@pytest.fixture(scope="module")
def release(): return Release.load(demo_folder() / "releases" / "v1", device="cpu")

@pytest.fixture(scope="module")
def rows(): return demo_rows("v1", 700, "train", seed=2)

@pytest.fixture(scope="module")
def coarse(release, rows): return train_dictionary(release, rows.head(500), n_features=128, k=4, tokens=60_000)

@pytest.fixture(scope="module")
def clt(release, rows): return train_dictionary(release, rows.head(500), n_features=96, k=4, tokens=40_000, wiring="clt")

@pytest.mark.parametrize("which", ["coarse", "clt"])
def test_the_splice_error_falls_on_rows_that_were_not_seen(which, release, rows, request):
    d = request.getfixturevalue(which)
    weights = {n: t.clone() for n, t in release.model.state_dict().items()}
    f = finish(release, d, rows.head(500), steps=60)
    before, after = (evaluate(release, x, rows.tail(200)) for x in (d, f))
    assert after["splice_error"] < 0.8 * before["splice_error"] and after["fvu"] < 1.25 * before["fvu"] and abs(after["l0"] / before["l0"] - 1) < 0.1
    assert all(torch.equal(t, weights[n]) for n, t in release.model.state_dict().items()) and not any(p.grad is not None for p in release.model.parameters())
    assert f.training["finish"]["last"] < f.training["finish"]["first"] and f.training["finish"]["on"] == "decision" and not f.validity and f.fingerprint != d.fingerprint
    assert all(torch.allclose(w.W_dec.flatten(1).norm(dim=1), torch.ones(len(w.W_dec)), atol=1e-5) and not w.W_enc.requires_grad for w in f.weights)

def test_kl_of_the_next_token_falls_where_it_is_asked_for(release, rows, coarse):
    f = finish(release, coarse, rows.head(500), steps=40, on="output")
    batch = release.batch(rows.tail(64))
    with torch.no_grad():
        bare = batch.run(release.model)
        kl = [float(task_loss(release, bare, run_replaced(release, d, batch), batch, "output", 1.0)) for d in (coarse, f)]
        assert float(task_loss(release, bare, bare, batch, "output", 1.0)) == pytest.approx(0, abs=1e-6)
        logits, other = bare.logits.double(), run_replaced(release, coarse, batch).logits.double()
        p = logits.softmax(-1)
        by_hand = (p * (p.log() - other.log_softmax(-1))).sum(-1)[batch.mask].mean()  # the definition
    assert kl[1] < kl[0] and kl[0] == pytest.approx(float(by_hand), rel=1e-3)

def test_seed_decides_and_training_can_ask_for_it(release, rows):
    make = lambda seed: train_dictionary(release, rows.head(300), n_features=64, k=4, tokens=20_000, finish=5, seed=seed)
    a, b, c = make(0), make(0), make(1)
    assert a.fingerprint == b.fingerprint != c.fingerprint and a.training["finish"]["steps"] == 5
    verify_canary(a, release)

@pytest.mark.parametrize("bad, says", [(dict(steps=0), "steps=0"), (dict(lr=0.0), "lr=0.0"), (dict(lr=math.nan), "lr=nan"), (dict(on="logits"), "logits")])
def test_nonsense_is_refused(bad, says, release, rows, coarse):
    with pytest.raises(InterpkitError, match=says) as e: finish(release, coarse, rows.head(50), **bad)
    assert e.value.code == 64

def test_a_loss_that_is_not_finite_stops(release, rows, coarse):
    with pytest.raises(InterpkitError, match="in step") as e: finish(release, coarse, rows.head(200), steps=40, lr=1e18)
    assert e.value.code == 65

def test_gradients_reach_every_weight_of_a_clt(release, rows, clt):
    from interpkit.dictionary.finish import _open, _trained
    moving, batch = _open(clt), release.batch(rows.head(8))
    bare = batch.run(release.model)
    loss = task_loss(release, bare, replaced_output(release, moving, batch), batch, "decision", 1.0)
    for w in moving.weights:
        for t in _trained(w): assert torch.autograd.grad(loss, t, retain_graph=True)[0].abs().max() > 0
