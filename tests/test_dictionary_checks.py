"What every dictionary must do, and the planted faults that the checks must find."

from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from helpers import refused
from small_language import without_starts, world
from small_wirings import (
    every,
    made,
    rows,
    spec,
    truth,
)
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.dictionary.checks import CHECKS, ON_A_RELEASE, check_dictionary
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.validity import certify
from interpkit.dictionary.weights import TENSORS, SiteWeights
from interpkit.model.releases import Release
from interpkit.model.sites import Site


def held_out(name):
    return rows("net") if name.startswith("net") else world(300).rows


def asked(table) -> dict:
    return dict(zip(table.check, table.outcome, strict=True))


HOLDS = {c.name: "holds" for c in (*CHECKS, *ON_A_RELEASE)}


@every
def test_every_wiring_passes_all_checks(name):
    t = truth(name)
    assert asked(check_dictionary(t.d, release=t.release, rows=held_out(name))) == HOLDS
    assert asked(check_dictionary(t.d)) == HOLDS | {
        c.name: "not asked: no release" for c in ON_A_RELEASE
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_checks_hold_in_every_type(dtype):
    for name in ("gpt2 tied clt", "llama transcoder, skip, other widths", "net sae"):
        check_dictionary(truth(name).d.to(dtype))


def test_checks_hold_for_awkward_dictionaries():
    d = truth("llama clt").d
    check_dictionary(d.subset([0, 1]))  # two sources without features
    check_dictionary(
        replace(
            d,
            weights=tuple(
                replace(
                    w,
                    threshold=torch.where(torch.arange(len(w.threshold)) % 2 == 0, 0.0, torch.inf),
                )
                for w in d.weights
            ),
        )
    )
    check_dictionary(
        replace(
            d,
            weights=tuple(
                replace(w, W_dec=torch.cat([torch.zeros_like(w.W_dec[:2]), w.W_dec[2:]]))
                for w in d.weights
            ),
        )
    )
    check_dictionary(
        certify(truth("llama clt").release, d, truth("llama clt").rows, like=held_out("llama")),
        release=truth("llama clt").release,
        rows=held_out("llama"),
    )


@pytest.mark.skipif(find_spec("sae_lens") is None, reason="SAELens is not installed")
@pytest.mark.parametrize("kind", ["jumprelu", "standard", "gated"])
def test_what_comes_from_saelens_passes_all_checks(kind):
    from small_saelens import made as made_by_saelens

    from interpkit.bridges.from_saelens import from_saelens

    release = world().old
    rows = world(300).rows
    imported = from_saelens(made_by_saelens(kind), release, rows)
    assert asked(check_dictionary(imported, release=release, rows=rows)) == HOLDS


def faulty(d, **methods):
    "The dictionary with other methods."
    return type("Faulty", (type(d),), methods)(**{n: getattr(d, n) for n in d.__dataclass_fields__})


def faulty_weights(d, **methods):
    cls = type("FaultyWeights", (SiteWeights,), methods)
    return replace(
        d,
        weights=tuple(cls(**{n: getattr(w, n) for n in w.__dataclass_fields__}) for w in d.weights),
    )


def last(d, **changed):
    return replace(
        d,
        weights=(
            *d.weights[:-1],
            replace(
                d.weights[-1],
                **{n: fn(getattr(d.weights[-1], n).clone()) for n, fn in changed.items()},
            ),
        ),
    )


def put(at, value):
    def fn(t):
        t[at] = value
        return t

    return fn


def no_skip(w, fn):
    return SiteWeights(*(fn(getattr(w, n)) for n in TENSORS))


FAULTS = {
    "NaN in the encoder": ("weights are finite", lambda d: last(d, W_enc=put((0, 0), torch.nan))),
    "NaN in the decoder": (
        "weights are finite",
        lambda d: last(d, W_dec=put((0, 0, 0), torch.nan)),
    ),
    "infinite bias": ("weights are finite", lambda d: last(d, b_enc=put(0, torch.inf))),
    "no bias": (
        "encode is",
        lambda d: faulty_weights(
            d, encode=lambda self, h: (z := self._fits(h) @ self.W_enc) * (z > self.threshold)
        ),
    ),
    "centred first": (
        "encode is",
        lambda d: faulty_weights(d, encode=lambda self, h: SiteWeights.encode(self, h - 0.1)),
    ),
    "above the threshold only what is more": (
        "encode is",
        lambda d: faulty_weights(
            d,
            encode=lambda self, h: torch.relu(
                self._fits(h) @ self.W_enc + self.b_enc - self.threshold
            ),
        ),
    ),
    "NaN as codes": (
        "sparse codes",
        lambda d: faulty(
            d,
            encode=lambda self, s, h: (
                (c := Dictionary.encode(self, s, h)) and replace(c, values=c.values * torch.nan)
            ),
        ),
    ),
    "one code per token": (
        "sparse codes",
        lambda d: faulty(
            d, encode=lambda self, s, h: Dictionary.encode(self, s, h).dense().sum(-1)
        ),
    ),
    "leaks": (
        "codes are 0 below",
        lambda d: faulty_weights(d, encode=lambda self, h: SiteWeights.encode(self, h) + 1e-9),
    ),
    "threshold let through": (
        "thresholds are strict",
        lambda d: faulty_weights(
            d,
            encode=lambda self, h: (
                (z := self._fits(h) @ self.W_enc + self.b_enc) * (z >= self.threshold)
            ),
        ),
    ),
    "rectified output": (
        "decode is linear",
        lambda d: faulty(
            d,
            decode=lambda self, c, a={}: {
                t: h.relu() for t, h in Dictionary.decode(self, c, a).items()
            },
        ),
    ),
    "features out of order": (
        "decode adds",
        lambda d: faulty(
            d,
            decode=lambda self, c, a={}: Dictionary.decode(
                self, {s: x.flip(-1) for s, x in c.items()}, a
            ),
        ),
    ),
    "targets out of order": (
        "decode adds",
        lambda d: faulty(
            d, decode=lambda self, c, a={}: dict(reversed(Dictionary.decode(self, c, a).items()))
        ),
    ),
    "a bias twice": (
        "decode adds",
        lambda d: faulty(
            d,
            written=lambda self, t, c, a={}: (
                Dictionary.written(self, t, c, a) + self.weights[0].b_dec
            ),
        ),
    ),
    "writes to its own layer alone": (
        "decode adds",
        lambda d: faulty(
            d, writes=lambda self, s: dict([next(iter(Dictionary.writes(self, s).items()))])
        ),
    ),
    "a forward of its own": (
        "forward is",
        lambda d: faulty(
            d,
            forward=lambda self, a: {t: h * 1.001 for t, h in Dictionary.forward(self, a).items()},
        ),
    ),
    "a row of length 2": (
        "decoder rows",
        lambda d: last(d, W_dec=lambda t: torch.cat([t[:1] * 2, t[1:]])),
    ),
    "a row 1 % too long": (
        "decoder rows",
        lambda d: last(d, W_dec=lambda t: torch.cat([t[:1] * 1.01, t[1:]])),
    ),
    "a subset of its neighbours": (
        "a subset is exact",
        lambda d: faulty(
            d,
            subset=lambda self, f: Dictionary.subset(
                self, sorted({(i + 1) % self.n_features for i in f})
            ),
        ),
    ),
    "a subset without labels": (
        "a subset is exact",
        lambda d: faulty(d, subset=lambda self, f: replace(Dictionary.subset(self, f), labels=())),
    ),
    "a subset that competes": (
        "a subset is exact",
        lambda d: faulty(
            d,
            subset=lambda self, f: (
                faulty_weights(
                    Dictionary.subset(self, f),
                    encode=lambda w, h: (
                        (c := SiteWeights.encode(w, h)) * (c == c.amax(-1, keepdim=True))
                    ),
                )
                if len(f) < self.n_features
                else self
            ),
        ),
    ),
    "`to` loses the skip": ("types and devices", lambda d: faulty_weights(d, map=no_skip)),
    "`to` rounds": (
        "types and devices",
        lambda d: faulty(
            d, to=lambda self, where: Dictionary.to(Dictionary.to(self, torch.float16), where)
        ),
    ),
    "`to` does nothing": ("types and devices", lambda d: faulty(d, to=lambda self, where: self)),
    "a folder loses its labels": (
        "a folder comes back",
        lambda d: faulty(
            replace(d, labels=tuple(f"named {i}" for i in range(d.n_features))),
            load=classmethod(lambda cls, folder: replace(Dictionary.load(folder), labels=())),
        ),
    ),
    "a folder in half precision": (
        "a folder comes back",
        lambda d: faulty(
            d, save=lambda self, folder: Dictionary.save(Dictionary.to(self, torch.float16), folder)
        ),
    ),
    "a folder that is not written": (
        "a folder comes back",
        lambda d: faulty(d, save=lambda self, folder: None),
    ),
    "any width": (
        "what doesn't fit",
        lambda d: faulty_weights(
            d, encode=lambda self, h: SiteWeights.encode(self, h[..., : self.d])
        ),
    ),
    "any type": (
        "what doesn't fit",
        lambda d: faulty_weights(
            d, encode=lambda self, h: SiteWeights.encode(self, h.to(self.W_enc.dtype))
        ),
    ),
    "torch's own message": (
        "what doesn't fit",
        lambda d: faulty_weights(
            d, encode=lambda self, h: (z := h @ self.W_enc + self.b_enc) * (z > self.threshold)
        ),
    ),
    "weights of two types": (
        "what doesn't fit",
        lambda d: faulty_weights(d, __post_init__=lambda self: None),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    check, plant = FAULTS[fault]
    d = truth("llama clt, skip, from the residual stream").d
    with pytest.raises(InterpkitError) as e:
        check_dictionary(plant(d))
    assert e.value.code == 65, str(e.value)
    assert check in e.value.asked, str(e.value)
    assert e.value.given, str(e.value)
    assert e.value.mend, str(e.value)


@pytest.mark.parametrize(
    "name, check, plant",
    [
        (
            "llama transcoder",
            "sites exist",
            lambda d: replace(d, targets=(Site("model.layers.9.mlp"),)),
        ),
        (
            "llama transcoder",
            "sites exist",
            lambda d: replace(d, targets=(Site("model.layers.1.mlp.gate_proj"),)),
        ),
        (
            "llama transcoder",
            "replacement model",
            lambda d: replace(d, targets=(Site("model.layers.0.mlp"),)),
        ),
        ("llama transcoder", "attributions", lambda d: last(d, b_dec=lambda t: t.fill_(3e38))),
    ],
)
def test_a_dictionary_that_does_not_fit_the_release_is_found(name, check, plant):
    t = truth(name)
    with pytest.raises(InterpkitError) as e:
        check_dictionary(plant(t.d), release=t.release, rows=held_out(name))
    assert e.value.code == 65, str(e.value)
    assert check in e.value.asked, str(e.value)


class Steep(nn.Module):
    "Finite as it is, and not where activations are large."

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 10), nn.Linear(10, 1)

    def forward(self, x):
        return self.head(self.first(x).exp())


def test_a_replacement_that_overflows_is_found():
    torch.manual_seed(0)
    release = Release.from_module(Steep(), sites=["first:out"], device="cpu")
    d = made(spec("transcoder", ["first:in"], ["first:out"], 5, d_out=10))
    assert asked(check_dictionary(d, release=release, rows=rows("net"))) == HOLDS
    with pytest.raises(InterpkitError, match="30 of 30 rows") as e:
        check_dictionary(last(d, b_dec=lambda t: t.fill_(200.0)), release=release, rows=rows("net"))
    assert e.value.code == 65
    assert "replacement model" in e.value.asked


def test_a_canary_of_nothing_is_found():
    t = truth("llama transcoder")
    with pytest.raises(InterpkitError, match="nothing but zeros") as e:
        check_dictionary(t.d, release=without_starts(t.release), rows=world(60).rows)
    assert e.value.code == 65
    assert "canary" in e.value.asked


def test_what_is_asked_wrongly():
    t = truth("llama transcoder")
    refused(partial(check_dictionary, t.d, release=t.release), code=64)
    refused(partial(check_dictionary, t.d, release=t.release, rows=t.rows.head(0)), code=64)
    refused(partial(check_dictionary, t.d.weights[0]), code=64)
