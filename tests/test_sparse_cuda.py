"On a GPU, where there is one: the same codes, gradients and dictionaries as on the CPU, by torch's operators and by the Triton kernels."

import pytest
import torch
from small_activations import SHAPES, stream

from interpkit.dictionary.dictionary import TENSORS, Dictionary
from interpkit.model.sites import Site
from interpkit.sparse.codes import Encoder, decode, encode, triton_for
from interpkit.sparse.products import Active
from interpkit.training.fit import fit, go_on
from interpkit.training.trainer import OBJECTIVES, Parameters, gradients, recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True, params=["torch", "triton"])
def kernels(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("INTERPKIT_KERNELS", request.param)
    return request.param


def test_triton_is_chosen_where_it_is_there(kernels, monkeypatch):
    x = torch.zeros(1, device="cuda")
    assert (triton_for(x) is None) == (kernels == "torch") and triton_for(torch.zeros(1)) is None
    monkeypatch.delenv("INTERPKIT_KERNELS")
    assert kernels == "torch" or triton_for(x) is not None
    assert triton_for(torch.zeros(1)) is None


def weights(d=24, F=80, T=3):
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(d, F, generator=g),
        torch.randn(F, generator=g),
        torch.rand(F, generator=g),
        torch.randn(F, T, d, generator=g),
    )


def test_codes_and_what_they_write():
    (W, b, t, D), x = weights(), torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(1))
    on = [a.cuda() for a in (W, b, t, D)]
    here, there = encode(x, W, b, t), encode(x.cuda(), *on[:3])
    assert torch.allclose(here.dense(), there.to("cpu").dense(), atol=1e-4) and torch.allclose(
        decode(here, D), decode(there, on[3]).cpu(), atol=1e-4
    )
    assert torch.allclose(Encoder(*on[:3])(x.cuda()).dense().cpu(), here.dense(), atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients(name):
    s, g, out = SHAPES[name], torch.Generator().manual_seed(1), {}
    flat, white, y = (
        torch.randn(len(Parameters(s).flat), generator=g),
        [torch.randn(33, d, generator=g) for d in s.sources],
        torch.randn(33, sum(s.targets), generator=g),
    )
    for device in ("cpu", "cuda"):
        p = Parameters(s, flat.clone().to(device))
        grad, w = p.like(torch.zeros_like(p.flat)), [x.to(device) for x in white]
        active = [
            Active.read(x, p.W_enc[i], p.b_enc[i], lambda pre: torch.tensor(0.5, device=device))
            for i, x in enumerate(w)
        ]
        error, _ = gradients(p, grad, y.to(device), w, active)
        out[device] = error.cpu(), grad.flat.cpu()
    for a, b in zip(*out.values()):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_finds_as_much_and_goes_on(objective, tmp_path):
    how = recipe(128, 6, 600 * 256, 256, objective=objective)
    here = fit(stream(600), how).record()
    there = fit(stream(600), how, device="cuda", folder=tmp_path)
    assert (
        abs(there.record()["fvu"] / here["fvu"] - 1) < 0.1
        and abs(there.record()["l0"] / here["l0"] - 1) < 0.1
    )
    again = go_on(tmp_path / "checkpoint", how, device="cuda")
    assert again.taken == 600 and torch.equal(again.p.flat, there.p.flat)


def test_triton_trains_the_same_to_the_last_bit(kernels):
    if kernels == "torch":
        pytest.skip("torch adds in an order that changes")
    first, again = (
        fit(stream(100), recipe(128, 6, 100 * 256, 256), device="cuda").p.flat for _ in range(2)
    )
    assert torch.equal(first, again)


def test_a_dictionary_moves_there_and_back():
    w = fit(stream(60, 128), recipe(64, 6, 60 * 128, 128)).weights()
    d, x = Dictionary((Site("a"),), w), torch.randn(50, 32)
    there = d.to("cuda")
    assert torch.allclose(
        there.forward({Site("a"): x.cuda()})[Site("a")].cpu(),
        d.forward({Site("a"): x})[Site("a")],
        atol=1e-4,
    )
    assert there.fingerprint == d.fingerprint and all(
        torch.equal(getattr(there.to("cpu").weights[0], n), getattr(w[0], n)) for n in TENSORS
    )
