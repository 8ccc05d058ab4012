"On a GPU, where there is one: codes, gradients and dictionaries as on the CPU, by both kernels."

import pytest
import torch
from small_activations import SHAPES, stream
from small_trainings import gradients_of

from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import TENSORS
from interpkit.model.sites import Site
from interpkit.sparse.codes import decode, triton_for
from interpkit.sparse.encoders import Encoder, encode
from interpkit.sparse.products import Active
from interpkit.training.checkpoint import go_on
from interpkit.training.fit import fit
from interpkit.training.gradients import Parameters
from interpkit.training.recipe import OBJECTIVES, recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True, params=["torch", "triton"])
def kernels(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("INTERPKIT_KERNELS", request.param)
    return request.param


def test_triton_is_chosen_where_it_is_there(kernels, monkeypatch):
    x = torch.zeros(1, device="cuda")
    assert (triton_for(x) is None) == (kernels == "torch")
    assert triton_for(torch.zeros(1)) is None
    monkeypatch.delenv("INTERPKIT_KERNELS")
    assert kernels == "torch" or triton_for(x) is not None
    assert triton_for(torch.zeros(1)) is None


def weights(d=24, F=80, T=3):
    "W_enc, b_enc, threshold and W_dec."
    g = torch.Generator().manual_seed(0)
    W_enc = torch.randn(d, F, generator=g)
    b_enc = torch.randn(F, generator=g)
    threshold = torch.rand(F, generator=g)
    return W_enc, b_enc, threshold, torch.randn(F, T, d, generator=g)


def test_codes_and_what_they_write():
    *encoder, W_dec = weights()
    x = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(1))
    cuda_encoder = [t.cuda() for t in encoder]
    here = encode(x, *encoder)
    there = encode(x.cuda(), *cuda_encoder)
    assert torch.allclose(here.dense(), there.to("cpu").dense(), atol=1e-4)
    written = decode(there, W_dec.cuda()).cpu()
    assert torch.allclose(decode(here, W_dec), written, atol=1e-4)
    packed = Encoder(*cuda_encoder)(x.cuda())
    assert torch.allclose(packed.dense().cpu(), here.dense(), atol=1e-4)


def half(pre):
    "The threshold of every feature."
    return torch.tensor(0.5, device=pre.device)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients(name):
    shape = SHAPES[name]
    g = torch.Generator().manual_seed(1)
    flat = torch.randn(len(Parameters(shape).flat), generator=g)
    white = [torch.randn(33, d, generator=g) for d in shape.sources]
    y = torch.randn(33, sum(shape.targets), generator=g)
    found = {}
    for device in ("cpu", "cuda"):
        p = Parameters(shape, flat.clone().to(device))
        moved = [x.to(device) for x in white]
        active = [Active.read(x, p.W_enc[i], p.b_enc[i], half) for i, x in enumerate(moved)]
        error, grad, _ = gradients_of(p, y.to(device), moved, active)
        found[device] = error.cpu(), grad.flat.cpu()
    for here, there in zip(*found.values(), strict=True):
        assert torch.allclose(here, there, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_finds_as_much_and_goes_on(objective, tmp_path):
    how = recipe(128, 6, 600 * 256, 256, objective=objective)
    here = fit(stream(600), how).record()
    there = fit(stream(600), how, device="cuda", folder=tmp_path)
    record = there.record()
    assert abs(record["fvu"] / here["fvu"] - 1) < 0.1
    assert abs(record["l0"] / here["l0"] - 1) < 0.1
    again = go_on(tmp_path / "checkpoint", how, device="cuda")
    assert again.taken == 600
    assert torch.equal(again.p.flat, there.p.flat)


def test_triton_trains_the_same_to_the_last_bit(kernels):
    if kernels == "torch":
        pytest.skip("torch adds in an order that changes")

    def trained():
        return fit(stream(100), recipe(128, 6, 100 * 256, 256), device="cuda").p.flat

    assert torch.equal(trained(), trained())


def test_a_dictionary_moves_there_and_back():
    w = fit(stream(60, 128), recipe(64, 6, 60 * 128, 128)).weights()
    site = Site("a")
    here = Dictionary((site,), w)
    there = here.to("cuda")
    x = torch.randn(50, 32)
    written = there.forward({site: x.cuda()})[site].cpu()
    assert torch.allclose(written, here.forward({site: x})[site], atol=1e-4)
    assert there.fingerprint == here.fingerprint
    back = there.to("cpu").weights[0]
    for name in TENSORS:
        assert torch.equal(getattr(back, name), getattr(w[0], name)), name
