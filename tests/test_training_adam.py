"Steps in proportion to rows, and what is active found with half the bits."

import pytest
import torch

from interpkit.sparse import products
from interpkit.sparse.encoders import has_bfloat16
from interpkit.sparse.products import Active, lays_out
from interpkit.training.adam import BIAS, DECODER, Adam, pace
from interpkit.training.gradients import Parameters, Shape
from interpkit.training.recipe import recipe
from interpkit.training.trainer import Trainer


def two_layers() -> Parameters:
    return Parameters(Shape(6, (512, 32), (512, 512), thresholds=True))


def step(adam: Adam, p: Parameters, lr: float):
    "All tensors along the same gradients."
    g = torch.Generator().manual_seed(0)
    for _, tensor in p.named():
        adam.move(tensor, torch.randn(tensor.shape, generator=g), lr)


def moved(p: Parameters) -> dict[str, float]:
    return {f"{kind} {tuple(t.shape)}": float(t.abs().mean()) for kind, t in p.named()}


def test_a_first_step_is_the_rate_times_the_pace_of_each_tensor():
    p = two_layers()
    step(Adam(p), p, 0.01)
    first = moved(p)
    assert first["W_enc (6, 512)"] == pytest.approx(0.01 / 2, rel=1e-3)
    assert first["W_enc (6, 32)"] == pytest.approx(0.01, rel=1e-3)  # short rows are not hurried
    assert first["W_dec (6, 512)"] == pytest.approx(0.01 / 2 * DECODER, rel=1e-3)
    assert first["W_dec (6, 1024)"] == pytest.approx(0.01 / 8**0.5 * DECODER, rel=1e-3)
    assert first["b_enc (6,)"] == pytest.approx(0.01 * BIAS, rel=1e-3)
    assert first["b_dec (1024,)"] == pytest.approx(0.01, rel=1e-3)
    assert pace("log_threshold", torch.zeros(6)) == 1


def test_alike_moves_all_tensors_by_the_rate():
    p = two_layers()
    step(Adam(p, alike=True), p, 0.01)
    assert all(x == pytest.approx(0.01, rel=1e-3) for x in moved(p).values())


def test_names_are_those_of_the_flat_tensor_in_its_order():
    for shape in (Shape(5, (4,), (4,)), Shape(5, (4, 3), (2, 2), skip=True, thresholds=True)):
        p = Parameters(shape, torch.arange(1000.0)[: len(Parameters(shape).flat)])
        assert torch.equal(torch.cat([t.flatten() for _, t in p.named()]), p.flat)


def test_what_is_taken_up_goes_on_to_the_last_bit():
    p = two_layers()
    adam = Adam(p)
    for _ in range(3):
        step(adam, p, 0.01)
    copied = Parameters(p.shape, p.flat.clone())
    again = Adam(copied)
    again.go_on({name: t.clone() for name, t in adam.moments().items()})
    assert int(again.moments()["step"]) == 3
    for lr in (0.02, 0.005):
        step(adam, p, lr)
        step(again, copied, lr)
    assert torch.equal(copied.flat, p.flat)


@pytest.mark.skipif(
    not (has_bfloat16() and lays_out(64, torch.bfloat16)), reason="no bfloat16 products here"
)
@pytest.mark.parametrize("per_feature", [False, True])
def test_rounded_weights_find_what_is_active(monkeypatch, per_feature):
    g = torch.Generator().manual_seed(1)
    x, W, b = (torch.randn(*s, generator=g) for s in ((700, 64), (900, 64), (900,)))
    cut = 14 + torch.rand(900, generator=g) * 4 if per_feature else torch.tensor(16.0)
    plain = x.double() @ W.double().T + b
    monkeypatch.setattr(products, "SCREENED", 1)
    found = Active.read(x, W, b, cut)
    place = found.token * 900 + found.feature
    over = (plain / cut).flatten()
    assert torch.allclose(found.value.double(), plain.flatten()[place], atol=1e-4)
    assert (over[place] > 1 - 1e-6).all()  # none that isn't active
    missed = torch.ones_like(over, dtype=torch.bool)
    missed[place] = False
    assert over[missed].max() < 1.01  # what is missed lies at the threshold
    assert int((over > 1).sum()) - len(place) <= 0.002 * len(place)


def test_a_step_finds_the_same_with_half_the_bits(monkeypatch):
    "A training with rounded screening and one without: the same to within rounding."
    g = torch.Generator().manual_seed(2)
    facts = torch.randn(96, 32, generator=g)
    x = [(torch.rand(512, 96, generator=g) < 0.06).float() @ facts for _ in range(60)]
    left = {}
    for least in (1, 2**40):
        monkeypatch.setattr(products, "SCREENED", least)
        t = Trainer(recipe(128, 6, 512 * 60, 512), [torch.cat(x)])
        for batch in x:
            t.step([batch])
        left[least] = t.fvu
    assert left[1] == pytest.approx(left[2**40], rel=0.05)
