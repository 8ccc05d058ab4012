"""Interventions against their definitions.

Features are steered, replaced and patched with plain hooks, one sequence at a time and without
padding, and the same must come out.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from small_language import BOS, PAD, V, world
from small_wirings import W, alone, every, made, mlps, reads, release, rows, spec, truth
from torch import nn

from interpkit.core.errors import ExitCode
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.evaluate import attributions
from interpkit.dictionary.replacement import run_replaced
from interpkit.dictionary.weights import SiteWeights
from interpkit.explain.ablation import all_effects
from interpkit.explain.faithfulness import curves, effect_prediction
from interpkit.explain.patching import activation_patching, attribution_patching, path_patching
from interpkit.explain.shallow import shallow_writes
from interpkit.model.releases import Release
from interpkit.model.sites import Site
from interpkit.model.watched import module_of, start_token

FEW = ("llama sae", "llama clt", "gpt2 tied clt", "net transcoder, other widths")
few = pytest.mark.parametrize("name", FEW)


def untouched(model) -> bool:
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    return not any(hooks) and "forward" not in model.__dict__


# a live model


@every
def test_codes_of_a_run_are_those_of_the_definition(name):
    t = truth(name, effects=False)
    batch = t.release.batch(t.rows)
    output, codes = t.d.run_with_codes(t.release, batch)
    bare = [x.decision for x in t.seen]
    assert t.release.decide(output, batch).tolist() == pytest.approx(bare, abs=1e-4)
    for i, (row, x) in enumerate(zip(t.rows.itertuples(), t.seen, strict=True)):
        for j, site in enumerate(t.d.sites):
            found = codes[site].dense()[i, : len(x.codes[j])]
            assert torch.allclose(found, x.codes[j], atol=1e-4), row
    assert untouched(t.release.model)


def steered_by_hand(t, x, changes: dict, mode: str) -> float:
    "The decision when features are changed where they are written, and the model answers freely."
    s, codes = t.s, {}
    offsets = np.cumsum([0, *(w["W_enc"].shape[1] for w in s.w)])
    of = {f: int(np.searchsorted(offsets, f, side="right")) - 1 for f in changes}

    def at(site):
        def fn(h):
            if site in s.sources:
                i = s.sources.index(site)
                codes[i] = reads(s, i, h, False)
            if site not in s.targets:
                return h
            j, more = s.targets.index(site), torch.zeros_like(h)
            for f, value in changes.items():
                i = of[f]
                rows_of_f = W(s, i, j)
                if rows_of_f is None:
                    continue
                a = codes[i][:, f - offsets[i]]
                by = torch.full_like(a, value) if mode == "add" else value - a
                more += by[:, None] * rows_of_f[f - offsets[i]]
            more[: t.start] = 0
            return h + more

        return fn

    return alone(t.release.model, x, {site: at(site) for site in [*s.sources, *s.targets]})[0]


@every
def test_steering_is_a_change_of_what_features_write(name):
    t = truth(name, effects=False)
    last = t.d.n_features - 1
    for mode, changes in (
        ("add", {0: 2.0, last: -1.0}),
        ("set", {1: 1.5, 3: 0.5}),
        ("ablate", None),
    ):
        asked = changes or {f: 0.0 for f in range(0, t.d.n_features, 2)}
        given = changes or list(asked)
        with t.d.steered(t.release, given, mode=mode):
            found = t.release.run(t.rows)
        due = [steered_by_hand(t, x.x, asked, mode) for x in t.seen[:6]]
        assert found[:6].tolist() == pytest.approx(due, abs=2e-3, rel=1e-3)
        assert (found - t.release.run(t.rows)).abs().max() > 1e-3
    assert untouched(t.release.model)


@every
def test_replaced_live_is_the_replacement_model(name):
    t = truth(name, effects=False)
    batch = t.release.batch(t.rows)
    with torch.no_grad(), t.d.replaced(t.release):
        live = t.release.run(batch)
    due = t.release.decide(run_replaced(t.release, t.d, batch), batch)
    assert live.tolist() == pytest.approx(due.tolist(), abs=1e-5)
    with torch.no_grad(), t.d.replaced(t.release, error=True):
        assert torch.equal(t.release.run(batch), t.release.run(batch))
        with_error = t.release.run(batch)
    assert with_error.tolist() == pytest.approx([x.decision for x in t.seen], abs=1e-4)


def test_gradients_reach_the_codes_of_a_model_with_its_error_term():
    t = truth("llama sae", effects=False)
    one = Dictionary(t.d.sites[1:], t.d.weights[1:])
    batch = t.release.batch(t.rows)
    with one.replaced(t.release, error=True) as live:
        t.release.decide(batch.run(t.release.model), batch).sum().backward()
    codes = live.codes[one.sites[0]]
    found = (codes.grad * codes).detach().sum(1)
    due = attributions(t.release, one, batch).signed.toarray()
    assert np.allclose(found, due, atol=1e-4)


# over a generation


def language(use_cache: bool = True):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    special = dict(bos_token_id=BOS, pad_token_id=PAD, eos_token_id=None)
    sizes = dict(vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=3)
    config = LlamaConfig(num_attention_heads=2, initializer_range=0.4, **sizes, **special)
    return LlamaForCausalLM(config).eval()


PROMPTS = torch.tensor([[PAD, PAD, BOS, 5, 6], [BOS, 7, 8, 9, 3]])


def written_on(model, ids=PROMPTS, **how) -> SimpleNamespace:
    told = dict(do_sample=False, output_scores=True, return_dict_in_generate=True)
    return model.generate(ids, attention_mask=(ids != PAD).long(), **(told | how))


@pytest.mark.parametrize("wiring", ["sae", "clt"])
@pytest.mark.parametrize("positions, due", [(None, 14), (slice(5, None), 6), ([4, 6], 4)])
def test_a_generation_is_steered_alike_with_and_without_a_cache(wiring, positions, due):
    model = language()
    places = [["model.layers.1:out"]] * 2 if wiring == "sae" else mlps("llama", [0, 1, 2])
    d = made(spec(wiring, *places, 16))
    bare = written_on(model, max_new_tokens=5)
    for mode, features in (("add", {0: 3.0}), ("set", {2: 2.0}), ("ablate", [0, 1, 2, 3, 4])):
        with d.steered(model, features, mode=mode, positions=positions) as done:
            cached = written_on(model, max_new_tokens=5)
            steered = done.steered
            whole = written_on(model, max_new_tokens=5, use_cache=False)
        assert torch.equal(cached.sequences, whole.sequences)
        for a, b in zip(cached.scores, whole.scores, strict=True):
            assert torch.allclose(a, b, atol=1e-3)
        assert not torch.allclose(cached.scores[-1], bare.scores[-1], atol=1e-3)
        if wiring == "sae":
            assert steered == due
    assert untouched(model)


def test_a_generation_is_read_token_by_token():
    model = language()
    d = made(spec("sae", *[["model.layers.0:out", "model.layers.1:out"]] * 2, 16))
    with d.reading(model) as noted:
        model(torch.tensor([[BOS, 3, 4]]))  # another text, which does not count
        text = written_on(model, max_new_tokens=4).sequences
    for i, first in ((0, 2), (1, 0)):  # alone, without its padding
        _, codes = d.run_with_codes(model, text[i : i + 1, first:-1])
        for site in d.sites:
            found = noted.codes[site].dense()[i, first:]
            assert torch.allclose(found, codes[site].dense()[0], atol=1e-4)
            assert not codes[site].dense()[0, 0].any()  # the start token


def test_positions_count_from_the_start_of_each_sequence_whatever_pads_it():
    t = truth("llama clt", effects=False)
    model, text = t.release.model, [3, 7, 5, 9]
    alone = torch.tensor([text])
    ids = torch.tensor([[8, 4, *text], [PAD, PAD, *text], [*text, PAD, PAD]])
    real = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    places = (real.cumsum(1) - 1).clamp_min(0)
    for positions in (1, [0, 2], -1, slice(1, 3), slice(-2, None), slice(0, None, 2)):
        with torch.no_grad(), t.d.steered(model, {3: 2.0}, positions=positions):
            due = model(alone).logits[0]
            padded = model(ids, real, position_ids=places).logits  # the mask without its name
        assert torch.allclose(padded[1, 2:], due, atol=1e-4), positions
        assert torch.allclose(padded[2, :4], due, atol=1e-4), positions
    _, codes = t.d.run_with_codes(model, (ids, real))
    for found in codes.values():
        assert not found.dense()[real == 0].any() and found.dense()[1, 3:].any()


def test_positions_are_those_of_the_sequence():
    model, ids = language(), torch.tensor([[BOS, 5, 6, 7]])
    d = made(spec("sae", *[["model.layers.1:out"]] * 2, 16))
    row = d.weights[0].W_dec[3, 0]
    for positions, due in ((2, [2]), (-1, [3]), ([0, 3], [0, 3]), (slice(1, 3), [1, 2])):
        kept = []
        handle = model.model.layers[2].register_forward_pre_hook(
            lambda m, a, k=kept: k.append(a[0])
        )
        bare = model(ids)
        with d.steered(model, {3: 2.0}, positions=positions):
            model(ids)
        handle.remove()
        change = torch.zeros_like(kept[0])
        change[0, due] = 2 * row
        assert torch.allclose(kept[1] - kept[0], change, atol=1e-5)
    mask = torch.tensor([[False, True, False, False]])
    with d.steered(model, {3: 2.0}, positions=mask):
        assert not torch.allclose(model(ids).logits[0, 1], bare.logits[0, 1])


def test_a_part_that_is_run_alone_has_start_tokens_of_its_own():
    model = language()
    d = made(spec("sae", *[["model.layers.1:out"]] * 2, 16))
    with torch.no_grad(), d.reading(model) as noted:
        for run in (model, model.model):
            for ids in (torch.tensor([[BOS, 5, 6, 7]]), torch.tensor([[8, 5, 6, 7]])):
                run(ids)
                found = noted.codes[d.sites[0]].dense()[0]
                due = d.run_with_codes(model, ids)[1][d.sites[0]].dense()[0]
                assert torch.allclose(found, due, atol=1e-5) and due[1:].any()


def test_blocks_that_end_in_any_order_leave_nothing_behind():
    model, ids = language(), torch.tensor([[BOS, 5, 6, 7]])
    d = made(spec("sae", *[["model.layers.1:out"]] * 2, 16))
    shortcut, bare = torch.backends.mha.get_fastpath_enabled(), model(ids).logits
    with d.steered(model, {4: 2.0}):
        due = model(ids).logits
    for ends in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        blocks = [d.steered(model, {f: 2.0}) for f in (1, 4, 7)]
        for block in blocks:
            block.__enter__()
        model(ids)
        for k in ends:
            if k == 1 and ends[-1] == 1:
                assert torch.allclose(model(ids).logits, due, atol=1e-5)
                assert not torch.backends.mha.get_fastpath_enabled()
            blocks[k].__exit__(None, None, None)
        assert untouched(model) and torch.equal(model(ids).logits, bare)
        assert torch.backends.mha.get_fastpath_enabled() == shortcut


def test_contexts_lie_inside_each_other_and_fail_without_a_trace():
    model, ids = language(), torch.tensor([[BOS, 5, 6, 7]])
    d = made(spec("sae", *[["model.layers.1:out"]] * 2, 16))
    with d.steered(model, {1: 1.0, 2: 2.0}):
        both = model(ids).logits
    with d.steered(model, {1: 1.0}), d.steered(model, {2: 2.0}):
        assert torch.allclose(model(ids).logits, both, atol=1e-5)
    before = model(ids).logits
    own = model.forward
    model.forward = own  # as some libraries set it
    with pytest.raises(ZeroDivisionError), d.replaced(model), d.steered(model, {1: 1.0}):
        raise ZeroDivisionError
    assert model.__dict__.pop("forward") is own
    assert torch.equal(model(ids).logits, before)
    assert untouched(model)


def test_half_precision_and_packed_tokens_are_steered_in_their_own_type():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, ffn_dim=32, num_hidden_layers=2, word_embed_proj_dim=16)
    model = OPTForCausalLM(
        OPTConfig(vocab_size=V, num_attention_heads=2, bos_token_id=BOS, init_std=0.4, **sizes)
    ).eval()
    d = made(spec("sae", *[["model.decoder.layers.0.fc2:out"]] * 2, 16))
    both = torch.tensor([[BOS, 5, 6, 7], [BOS, 8, 9, 4]])
    with d.steered(model, {3: 4.0}, positions=[2]):
        found = model(both).logits
        singly = [model(x[None]).logits[0] for x in both]
    assert torch.allclose(found, torch.stack(singly), atol=1e-4)
    assert torch.allclose(found[:, :2], model(both).logits[:, :2], atol=1e-5)
    half = model.to(torch.bfloat16)
    with d.steered(half, {3: 4.0}, mode="set"):
        assert half(both).logits.dtype == torch.bfloat16


def test_what_can_not_be_steered_is_refused():
    model, ids = language(), torch.tensor([[BOS, 5, 6, 7]])
    d = made(spec("sae", *[["model.layers.1:out"]] * 2, 16))

    def steer(*args, run=True, **kwargs):
        with d.steered(*args, **kwargs):
            if run:
                model(ids)

    refused(lambda: steer(model, {9: 1.0}), "from 0 to 8")
    refused(lambda: steer(model, {0: 1.0}, site="model.layers.0"), "model.layers.1")
    refused(lambda: steer(model, {0: float("nan")}), code=ExitCode.BAD_PARAMETERS)
    refused(lambda: steer(model, {}), code=ExitCode.BAD_PARAMETERS)
    refused(lambda: steer(model, {0: 1.0}, mode="scale"), code=ExitCode.BAD_PARAMETERS)
    refused(lambda: steer("gpt2", {0: 1.0}), code=ExitCode.BAD_PARAMETERS)
    refused(lambda: steer(model, {0: 1.0}, run=False), "model.layers.1:out")
    refused(lambda: steer(model, {0: 1.0}, positions=[70]), "none of positions")
    refused(lambda: steer(model, {0: 1.0}, positions=torch.ones(1, 3, dtype=torch.bool)), "[1, 4]")
    refused(lambda: steer(nn.Linear(16, 2), {0: 1.0}), "nearest names")
    late = Dictionary(("model.layers.2:out",), d.weights, wiring="transcoder", targets=d.targets)

    def steer_late():
        with late.steered(model, [0], mode="ablate"):
            model(ids)

    refused(steer_late, "after it")
    assert untouched(model)


# patching


def pairs(n: int = 6):
    "Clean and corrupted rows that differ in one token in the middle."
    clean = world(10).rows.head(n).drop(columns=["weight", "group_id"])
    ids = [list(x) for x in clean.input_ids]
    for x in ids:
        x[1] = 3 + (x[1] + 5) % (V - 3)
    return clean, clean.assign(input_ids=ids)


def patched_by_hand(model, x, edits):
    return alone(model, x, edits)[0]


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_patches_by_site_and_position_are_those_of_the_definition(mode):
    r = release("gpt2")
    clean, corrupted = pairs()
    site = "transformer.h.1:out"
    by_site = activation_patching(r, clean, corrupted, site, mode=mode)
    by_position = activation_patching(r, clean, corrupted, site, by="position", mode=mode)
    at = by_position.table.set_index(["sequence", "position"]).decision
    pairs_of_ids = zip(clean.input_ids, corrupted.input_ids, strict=True)
    for name, ids in zip(clean.sequence_id, pairs_of_ids, strict=True):
        run, other = ids[::-1] if mode == "denoise" else ids
        there = alone(r.model, other, reads=[site])[1][site]
        due = alone(r.model, run, {site: lambda h, there=there: there})[0]
        found = by_site.table.set_index("sequence").decision[name]
        assert found == pytest.approx(due, abs=1e-3)
        for p in range(len(run)):

            def one(h, p=p, there=there):
                return torch.cat([h[:p], there[p : p + 1], h[p + 1 :]])

            assert at[name, p] == pytest.approx(alone(r.model, run, {site: one})[0], abs=1e-3)
        assert len(at[name]) == len(run)
    assert (by_position.table.query("position == 0").effect == 0).all()  # a causal model


def test_a_patch_of_all_that_the_decision_reads_closes_the_gap():
    r = release("gpt2")
    clean, corrupted = pairs()
    for mode in ("denoise", "noise"):
        whole = activation_patching(r, clean, corrupted, "transformer.h.2", mode=mode)
        assert np.allclose(whole.table["share"], 1, atol=1e-3)
        last = activation_patching(r, clean, corrupted, "transformer.h.2", positions=-1, mode=mode)
        assert np.allclose(last.table["share"], 1, atol=1e-3)
    blocks = activation_patching(r, clean, corrupted, "blocks")
    assert set(blocks.table.site) == {f"transformer.h.{i}:out" for i in range(3)}
    hook = activation_patching(r, clean, corrupted, "blocks.2.hook_resid_post")
    assert np.allclose(hook.table["share"], 1, atol=1e-3)


@few
def test_patches_by_feature_are_those_of_the_definition(name):
    t = truth(name, effects=False)
    clean = t.rows.head(4)
    if "input_ids" in clean:
        clean, corrupted = pairs(4)
    else:
        corrupted = clean.assign(**{c: clean[c].to_numpy()[::-1] for c in "ab"})
    found = activation_patching(
        t.release, clean, corrupted, by="feature", dictionary=t.d, most=None
    ).table.set_index(["sequence", "feature"])
    offsets = np.cumsum([0, *(w["W_enc"].shape[1] for w in t.s.w)])
    both = (clean, corrupted)
    first = "input_ids" in clean
    xs = [
        x.input_ids if first else torch.tensor(x[list("abcde")].to_numpy(float)).float()
        for x in both
    ]
    checked = 0
    for k, sequence in enumerate(clean.sequence_id):
        seen = []
        for x in xs:
            x = x.iloc[k] if first else x[k]
            _, acts = alone(t.release.model, x, reads=[*t.s.sources, *t.s.targets])
            codes = {i: reads(t.s, i, acts[s], first) for i, s in enumerate(t.s.sources)}
            seen.append((x, acts, codes))
        (_, _, there), (x, acts, here) = seen
        for f in found.loc[sequence].index[:8]:
            i = int(np.searchsorted(offsets, f, side="right")) - 1
            by = (there[i] - here[i])[:, [f - offsets[i]]]

            def edit(j, by=by, i=i, f=f, acts=acts):
                rows_of_f = W(t.s, i, j)
                more = 0 if rows_of_f is None else by * rows_of_f[f - offsets[i]]
                return lambda h: (h if t.s.wiring == "sae" else acts[t.s.targets[j]]) + more

            js = [j for j in range(i, len(t.s.w)) if t.s.wiring != "sae" or j == i]
            due = alone(t.release.model, x, {t.s.targets[j]: edit(j) for j in js})[0]
            assert found.decision[sequence, f] == pytest.approx(due, abs=2e-3, rel=1e-3)
            checked += abs(found.effect[sequence, f]) > 1e-3
    assert checked > 5


def test_attribution_patching_is_the_slope_of_the_patch():
    "A hundredth of the way, the estimate is the effect."
    r = release("net")
    rng = np.random.default_rng(0)
    clean = rows("net").head(8)
    near = clean.copy()
    near[list("abcde")] += 1e-2 * rng.normal(size=(8, 5)).astype("float32")
    d = made(spec("sae", *[["blocks.0:out"]] * 2, 10))
    always = dict(b_enc=torch.full((9,), 9.0), threshold=torch.zeros(9))
    d = Dictionary(d.sites, (replace(d.weights[0], **always),))
    for how in (dict(sites="blocks.0"), dict(by="feature", dictionary=d)):
        estimated = attribution_patching(r, clean, near, **how).table
        measured = activation_patching(r, clean, near, **how).table
        size = measured.effect.abs().max()
        assert size > 1e-4
        assert np.allclose(estimated.effect, measured.effect, atol=0.03 * size + 2e-6)


def test_a_path_is_what_the_sender_tells_the_receiver():
    r = release("gpt2")
    clean, corrupted = pairs(4)
    sender, receiver = "transformer.h.0.mlp:out", "transformer.h.2.ln_2:in"
    held = [f"transformer.h.{i}.{part}:out" for i in (1, 2) for part in ("attn", "mlp")][:3]
    found = path_patching(r, clean, corrupted, sender, receiver)
    assert all(site.removesuffix(":out") in found.note for site in held)
    free = path_patching(r, clean, corrupted, sender, receiver, hold=())
    for k, name in enumerate(clean.sequence_id):
        other, run = clean.input_ids.iloc[k], corrupted.input_ids.iloc[k]
        there = alone(r.model, other, reads=[sender])[1][sender]
        _, here = alone(r.model, run, reads=held)
        for table, kept in ((found.table, held), (free.table, [])):
            edits = {site: (lambda h, t=here[site]: t) for site in kept}
            _, acts = alone(r.model, run, edits | {sender: lambda h, t=there: t}, reads=[receiver])
            due = alone(r.model, run, {receiver: lambda h, t=acts[receiver]: t})[0]
            assert table.set_index("sequence").decision[name] == pytest.approx(due, abs=1e-3)
    assert not np.allclose(found.table.effect, free.table.effect, atol=1e-3)
    whole = activation_patching(r, clean, corrupted, sender).table.effect
    assert np.allclose(found.table.whole, whole, atol=1e-5)
    refused(lambda: path_patching(r, clean, corrupted, receiver, sender), "before it")


def test_shares_are_of_all_gaps_whatever_rows_are_called_and_wherever_nothing_fires():
    t = truth("gpt2 tied clt", effects=False)
    clean, corrupted = pairs(4)
    asked = dict(by="feature", dictionary=t.d, most=None)
    due = activation_patching(t.release, clean, corrupted, **asked)
    same = (x.assign(sequence_id="a") for x in (clean, corrupted))
    found = activation_patching(t.release, *same, **asked)
    assert np.allclose(found.summary.share, due.summary.share, atol=1e-6)
    assert found.table.sequence.nunique() == due.table.sequence.nunique()
    gaps = activation_patching(t.release, clean, corrupted).table.gap.abs()
    assert due.gaps == pytest.approx(gaps.sum(), rel=1e-5)
    alike = pd.concat([clean.head(2), corrupted.tail(2)], ignore_index=True)  # two pairs move
    moved = activation_patching(t.release, alike.assign(sequence_id=range(4)), corrupted, **asked)
    assert moved.gaps == pytest.approx(gaps.iloc[:2].sum(), rel=1e-5)


def test_rows_that_are_no_pairs_are_refused():
    r = release("gpt2")
    clean, corrupted = pairs(4)
    longer = corrupted.assign(input_ids=[[*x, 4] for x in corrupted.input_ids])
    refused(lambda: activation_patching(r, clean, longer), "same number of tokens")
    refused(lambda: activation_patching(r, clean, corrupted.head(2)), "row by row")
    swapped = corrupted.iloc[::-1].assign(sequence_id=clean.sequence_id.to_numpy()[::-1])
    refused(lambda: activation_patching(r, clean, swapped), "in one order")
    refused(lambda: activation_patching(r, clean, corrupted, positions=40), "each sequence has")
    bad = ExitCode.BAD_PARAMETERS
    refused(lambda: activation_patching(r, clean, corrupted, by="feature"), code=bad)
    refused(lambda: activation_patching(r, clean, corrupted, mode="noising"), code=bad)
    refused(lambda: activation_patching(r, clean, corrupted, by="token"), code=bad)


# faithfulness


@few
def test_curves_begin_and_end_where_they_must(name):
    t = truth(name, effects=False)
    found = curves(t.release, t.d, t.rows, k=[1, 3], draws=1)
    table = found.table.assign(all=found.table.features == found.table.features.max())
    for curve, none, every_one in (
        ("insertion", "removed", "bare"),
        ("deletion", "bare", "removed"),
    ):
        own = table[table.curve == curve]
        assert np.allclose(own[own.features == 0].value, own[own.features == 0][none], atol=2e-3)
        assert np.allclose(own[own["all"]].value, own[own["all"]][every_one], atol=2e-3)
    ends = found.summary.groupby("curve").value.agg(["first", "last"])
    assert np.allclose(ends.loc[["insertion", "deletion"]], [[0, 1], [1, 0]], atol=1e-3)
    one = table[(table.curve == "deletion") & (table.features == 1)].set_index("sequence")
    at = attributions(t.release, t.d, t.release.batch(t.rows)).size.toarray()
    effects = all_effects(t.release, t.d, t.rows)
    due = effects[np.arange(len(at)), at.argmax(1)]
    assert np.allclose(one.bare - one.value, due, atol=2e-3)
    assert not np.allclose(one.control, one.value, atol=1e-2)


@few
def test_measured_effects_are_those_of_ablation(name):
    t = truth(name, effects=False)
    found = effect_prediction(t.release, t.d, t.rows, least=0.0)
    effects = pd.DataFrame(all_effects(t.release, t.d, t.rows), t.rows.sequence_id).stack()
    due = effects.loc[list(zip(found.table.sequence, found.table.feature, strict=True))]
    assert np.allclose(found.table.measured, due, atol=1e-5)
    assert found.covered == pytest.approx(1) and -1 <= found.rank <= 1
    fewer = effect_prediction(t.release, t.d, t.rows, least=0.05)
    assert fewer.covered < 1 and len(fewer.table) < len(found.table)


class Hops(nn.Module):
    "Three MLPs that copy: each reads one axis of the stream by `reads` and writes the next one."

    def __init__(self, reads):
        super().__init__()
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        with torch.no_grad():
            for i, weights in enumerate(reads):
                self.mlps[i][0].weight.zero_()[i + 1, : len(weights)] = torch.tensor(weights)
                self.mlps[i][0].bias.zero_()

    def forward(self, x):
        h = torch.cat([x, x.new_zeros(len(x), 3)], 1)
        for mlp in self.mlps:
            h = h + mlp(h)
        return h[:, 3:]


def hops_dictionary():
    rows_of_f = torch.zeros(1, 3, 4)
    rows_of_f[0, [0, 1, 2], [1, 2, 3]] = 1 / 3**0.5
    one, none = torch.zeros(1), torch.zeros(0)
    first = SiteWeights(3**0.5 * torch.eye(4)[:, :1], one, one, rows_of_f, torch.zeros(4))
    idle = [
        SiteWeights(torch.zeros(4, 0), none, none, torch.zeros(0, k, 4), torch.zeros(4))
        for k in (2, 1)
    ]
    at = [tuple(Site(f"mlps.{i}", side) for i in range(3)) for side in ("in", "out")]
    return Dictionary(at[0], (first, *idle), wiring="clt", targets=at[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_share_of_a_write_that_takes_steps_is_found(share):
    "Each later MLP reads `share` from the one before and the rest from the amount itself."
    reads_of = [(1.0,), (1 - share, share), (1 - share, 0.0, share)]
    r = Release.from_module(Hops(reads_of), sites=["mlps.0"], device="cpu")
    x = np.random.default_rng(0).uniform(1, 2, (30, 1)).astype("float32")
    data = pd.DataFrame(x, columns=["amount"]).assign(sequence_id=range(30))
    assert np.allclose(r.run(data), x[:, 0], atol=1e-6)  # one function, whatever the share
    found = shallow_writes(r, hops_dictionary(), data)
    assert np.allclose(found.table.through, share, atol=1e-4)
    assert found.flagged == (share > 0.1)
    assert (found.table.chain == (share > 0.5)).all()


def test_only_a_clt_can_skip_steps():
    t = truth("llama per_layer", effects=False)
    error = refused(lambda: shallow_writes(t.release, t.d, t.rows), code=ExitCode.BAD_PARAMETERS)
    assert "no step is skipped" in error.mend


def test_entering_a_context_leaves_those_around_it_alone():
    "Whether a start token counts is tried out on the model: nobody else may take that for a run."
    model, ids = language(), torch.tensor([[BOS, 5, 6, 7]])
    d = made(spec("sae", *[["model.layers.1:out"]] * 2, 16))
    model.train()
    with d.reading(model) as noted, d.steered(model, {0: 1.0}) as outer:
        model(ids)
        before, count = noted.codes[d.sites[0]], outer.steered
        with d.steered(model, {0: 1.0}, site="blocks.1.hook_resid_post"):
            assert outer.steered == count == 3
            assert torch.equal(noted.codes[d.sites[0]].dense(), before.dense())
            model(ids)
    assert all(m.training for m in model.modules())


def test_a_position_that_sees_the_whole_text_counts():
    "RoBERTa's classifier reads its start token; a causal model's says nothing."
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    special = dict(bos_token_id=BOS, pad_token_id=PAD, eos_token_id=2)
    sizes = dict(vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
    config = RobertaConfig(
        num_attention_heads=2, max_position_embeddings=16, initializer_range=0.4, **sizes, **special
    )
    model = RobertaForSequenceClassification(config).eval()
    d = made(spec("sae", *[["roberta.encoder.layer.0:out"]] * 2, 16))
    ids = torch.tensor([[BOS, 5, 6, 2], [BOS, 7, 2, PAD]])
    with d.steered(model, {0: 2.0}) as done:
        model(input_ids=ids, attention_mask=(ids != PAD).long())
    assert done.steered == 7
    assert start_token(model) is None and start_token(language()) == BOS


def test_a_model_with_a_state_in_place_of_keys_is_followed_too():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    special = dict(bos_token_id=BOS, pad_token_id=PAD, eos_token_id=None)
    sizes = dict(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(MambaConfig(initializer_range=0.4, **sizes, **special)).eval()
    d, ids = made(spec("sae", *[["backbone.layers.0:out"]] * 2, 16)), torch.tensor([[BOS, 5, 6, 7]])
    found = []
    for cache in (True, False):
        with d.steered(model, {0: 5.0}, positions=[5]) as done, d.reading(model) as noted:
            found.append(written_on(model, ids, max_new_tokens=4, use_cache=cache))
        assert done.steered == (1 if cache else 2)  # without a cache it is run again
        assert noted.codes[d.sites[0]].shape == (1, 7, 9)
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.allclose(found[0].scores[-1], found[1].scores[-1], atol=1e-3)
    refused(lambda: module_of(torch.compile(model, backend="eager")), "_orig_mod", code=64)


def test_a_block_that_is_passed_several_times_is_refused_rather_than_read_once():
    from transformers import AlbertConfig, AlbertModel

    sizes = dict(vocab_size=30, embedding_size=8, hidden_size=16, intermediate_size=32)
    albert = AlbertModel(AlbertConfig(num_hidden_layers=3, num_attention_heads=2, **sizes)).eval()
    name = next(n for n, m in albert.named_modules() if type(m).__name__ == "AlbertLayer")
    eye, zero = torch.eye(16), torch.zeros(16)
    shared = Dictionary((Site(name),), (SiteWeights(eye, zero, zero, eye, zero),))
    refused(lambda: shared.run_with_codes(albert, torch.tensor([[2, 5, 7]])), "passed once")
