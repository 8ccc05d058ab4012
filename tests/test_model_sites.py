"Sites on many kinds of modules: reading, writing, gradients, and running from a site onward, each against the plain forward by value."

import copy

import pytest
import torch
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.model.batch import Batch
from interpkit.model.block_kinds import mlp_sites
from interpkit.model.capture import capture, run_spliced
from interpkit.model.gradients import grad_at_sites
from interpkit.model.hook_names import hook_name_from_site, site_from_hook_name
from interpkit.model.hooks import hooked
from interpkit.model.prefix import Prefix
from interpkit.model.sites import Site

V, B, T = 20, 7, 6


class Asked:
    "What sites need of a release: a model and its decision."

    name = "v1"

    def __init__(self, model, decision):
        self.model, self.decision = model.eval().requires_grad_(False), decision

    def decide(self, out, batch):
        return self.decision(out, batch).float()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            initializer_range=0.5,
            use_cache=False,
        )
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V,
            n_embd=16,
            n_layer=4,
            n_head=2,
            n_positions=16,
            initializer_range=0.5,
            bos_token_id=1,
            eos_token_id=2,
            use_cache=False,
        )
    )


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            max_position_embeddings=16,
            num_labels=2,
            initializer_range=0.5,
        )
    )


def tokens(n=B, lengths=None) -> Batch:
    g = torch.Generator().manual_seed(1)
    lengths = torch.tensor(lengths or [T, 3, 5, T, 1, 4, T][:n])
    real = torch.arange(T)[None] < lengths[:, None]
    ids = torch.where(real, torch.randint(3, V, (n, T), generator=g), 0)
    return Batch(
        kwargs=dict(input_ids=ids, attention_mask=real.long()), mask=real, last=lengths - 1, n=n
    )


def at_last(out, batch):
    return (
        out.logits[torch.arange(batch.n), batch.last, 5]
        - out.logits[torch.arange(batch.n), batch.last, 6]
    )


def two_logits(out, batch):
    return out.logits[:, 1] - out.logits[:, 0]


class Skip(nn.Module):
    "Numbers and a category; the category goes around the site."

    def __init__(self, n_cat=5):
        super().__init__()
        self.numbers, self.category = nn.Linear(3, 8), nn.Embedding(n_cat, 8)
        self.hidden, self.act, self.head = nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(16, 1)

    def forward(self, x, category, mask=None):
        around = self.category(category)
        h = self.act(self.hidden(self.numbers(x)))
        if mask is not None:
            h = h * mask[:, None]
        return self.head(torch.cat([h, around], 1))


class Tuples(nn.Module):
    "A recurrent network, whose layers return tuples."

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b, self.head = (
            nn.Embedding(V, 8),
            nn.GRU(8, 8, batch_first=True),
            nn.GRU(8, 8, batch_first=True),
            nn.Linear(8, 1),
        )

    def forward(self, ids):
        return self.head(self.b(self.a(self.embed(ids))[0])[0][:, -1])


class Table(nn.Module):
    "Its positions come from a module that returns [T, d], one table for all sequences."

    def __init__(self):
        super().__init__()
        self.embed, self.place, self.hidden, self.head = (
            nn.Embedding(V, 8),
            nn.Embedding(T, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 1),
        )

    def forward(self, ids):
        return self.head(
            torch.relu(self.hidden(self.embed(ids) + self.place(torch.arange(ids.shape[1])))).mean(
                1
            )
        )


class Averaged(nn.Module):
    "Adds the mean of a table behind the site: rows picked out of the table fit in shape, and are wrong."

    def __init__(self):
        super().__init__()
        self.embed, self.place, self.hidden, self.head = (
            nn.Embedding(V, 8),
            nn.Embedding(T, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 1),
        )

    def forward(self, ids):
        e, p = self.embed(ids), self.place(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.hidden(e)) + p.mean(0)).mean(1)


class Changes(nn.Module):
    "Changes in place what came before the site: one row a sequence, and a table for all of them."

    def __init__(self):
        super().__init__()
        self.first, self.table, self.hidden, self.head = (
            nn.Linear(4, 8),
            nn.Embedding(1, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 1),
        )

    def forward(self, x):
        a, t = self.first(x), self.table(torch.zeros(1, dtype=torch.long))
        h = self.hidden(a)
        return self.head(torch.tanh(h) + a.mul_(2) + t.mul_(3))


class Keywords(nn.Module):
    "Its block is called with keyword arguments alone, and is allowed to fail."

    def __init__(self):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(4, 8), Block(), nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x)
        try:
            h = self.block(scale=torch.ones(1), hidden_states=h)
        except Exception:
            h = h * 0
        return self.head(h)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, scale, hidden_states):
        return dict(hidden=torch.tanh(self.inner(hidden_states)) * scale, other=None)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(4, 8), Block(), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.block(scale=torch.ones(1), hidden_states=self.first(x))["hidden"])


def ids(n=B, t=T):
    return Batch(
        args=(torch.randint(0, V, (n, t), generator=torch.Generator().manual_seed(2)),), n=n
    )


def numbers(d=4, n=B):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(3))


def first(out, batch):
    return out[:, 0]


def seeded(build):
    torch.manual_seed(0)
    return build()


def mlp():
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 1),
        )
    )


def two_inputs():
    return Batch(
        args=(numbers(3),),
        kwargs=dict(category=torch.arange(B) % 5, mask=(torch.arange(B) % 3 > 0).float()),
        n=B,
    )


def encoder():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(V, 8), nn.Linear(8, 1)
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4
            )

        def forward(self, ids, attention_mask):
            return self.head(
                self.encoder(self.embed(ids), src_key_padding_mask=attention_mask == 0)[:, 0]
            )

    return seeded(Encoder)


def encoder_batch():
    b = tokens()
    return Batch(args=(b.kwargs["input_ids"], b.kwargs["attention_mask"]), mask=b.mask, n=B)


CASES = {  # name -> model, batch, decision, site, mode
    "llama out": (llama, tokens, at_last, "model.layers.1:out", "from site"),
    "llama in": (llama, tokens, at_last, "model.layers.2:in", "from site"),
    "llama mlp": (llama, tokens, at_last, "model.layers.1.mlp:out", "from site"),
    "llama norm in": (
        llama,
        tokens,
        at_last,
        "model.layers.1.post_attention_layernorm:in",
        "from site",
    ),
    "llama attention": (llama, tokens, at_last, "model.layers.1.self_attn:out", "from site"),
    "gpt2": (gpt2, tokens, at_last, "transformer.h.1:out", "from site"),
    "gpt2 in": (gpt2, tokens, at_last, "transformer.h.2:in", "from site"),
    "bert": (bert, tokens, two_logits, "bert.encoder.layer.1:out", "from site"),
    "in-place": (mlp, lambda: Batch(args=(numbers(),), n=B), first, "0:out", "from site"),
    "in-place in": (mlp, lambda: Batch(args=(numbers(),), n=B), first, "1:in", "from site"),
    "hidden": (mlp, lambda: Batch(args=(numbers(),), n=B), first, "1:out", "from site"),
    "skip": (lambda: seeded(Skip), two_inputs, first, "hidden:out", "from site"),
    "skip in": (lambda: seeded(Skip), two_inputs, first, "act:in", "from site"),
    "tuples": (lambda: seeded(Tuples), ids, first, "a:out", "from site"),
    "table": (lambda: seeded(Table), lambda: ids(T + 2), first, "hidden:in", "from site"),
    "table of as many positions as sequences": (
        lambda: seeded(Table),
        lambda: ids(T),
        first,
        "hidden:in",
        "full",
    ),
    "mean of a table": (lambda: seeded(Averaged), lambda: ids(T), first, "hidden:out", "full"),
    "changes in place": (
        lambda: seeded(Changes),
        lambda: Batch(args=(numbers(),), n=B),
        first,
        "hidden:out",
        "from site",
    ),
    "dict, keywords": (
        lambda: seeded(Wrapped),
        lambda: Batch(args=(numbers(),), n=B),
        first,
        "block:out",
        "from site",
    ),
    "keywords in": (
        lambda: seeded(Wrapped),
        lambda: Batch(args=(numbers(),), n=B),
        first,
        "block:in",
        "from site",
    ),
    "torch encoder": (encoder, encoder_batch, first, "encoder.layers.1:out", "from site"),
}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    build, batch, decision, site, mode = CASES[request.param]
    return Asked(build(), decision), batch(), Site.parse(site), mode


def spliced(release, site, batch, replacement):
    return release.decide(run_spliced(release.model, {site: replacement}, batch), batch)


def test_activations_put_back_change_nothing(case):
    release, batch, site, _ = case
    bare = release.decide(batch.run(release.model), batch)
    acts = capture(release.model, [site], batch)[site]
    assert acts.ndim == 3 and len(acts) == batch.n and bare.std() > 1e-3
    assert torch.allclose(spliced(release, site, batch, acts), bare, atol=1e-5)
    assert not torch.allclose(spliced(release, site, batch, acts.flip(-1)), bare, atol=1e-3)


def test_prefix_is_the_full_forward(case):
    release, batch, site, mode = case
    prefix = Prefix(release, [site], batch)
    assert prefix.mode[site] == mode
    bare = release.decide(batch.run(release.model), batch)
    assert torch.allclose(prefix.decision, bare, atol=1e-5)
    g = torch.Generator().manual_seed(4)
    for index in (
        torch.randint(0, batch.n, (23,), generator=g),
        torch.arange(batch.n).flip(0),
        torch.tensor([2]),
    ):  # 23 rows, as many as the batch, one
        new = prefix.acts[site][index] + torch.randn(prefix.acts[site][index].shape, generator=g)
        expected = torch.cat(
            [
                spliced(release, site, batch.take(index[i : i + 1]), new[i : i + 1])
                for i in range(len(index))
            ]
        )  # one by one: no chance to mix rows up
        before = new.clone()
        assert torch.allclose(prefix.run(site, index, new), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(new, before)
    assert torch.allclose(
        release.decide(batch.run(release.model), batch), bare
    )  # nothing is left behind in the model


def test_gradients_are_finite_differences(case):
    release, batch, site, _ = case
    decision, acts, grads = grad_at_sites(release, [site], batch)
    model = Asked(copy.deepcopy(release.model).double(), release.decision)
    model.decide = lambda out, b: model.decision(out, b)
    double = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    exact = capture(model.model, [site], double)[site]
    assert torch.allclose(acts[site].double(), exact, atol=1e-4)
    g, (step, bound) = (
        torch.Generator().manual_seed(5),
        (1e-3, 1e-2) if "Llama" in type(release.model).__name__ else (1e-6, 1e-3),
    )  # Llama's norms compute in 32 bits whatever comes
    for _ in range(3):
        d = torch.randn(exact.shape, generator=g).double()
        d[(exact.abs() < 1e-4)] = 0  # not across the kink of a ReLU
        rise = (
            spliced(model, site, double, exact + step * d)
            - spliced(model, site, double, exact - step * d)
        ) / (2 * step)
        assert torch.allclose(
            (grads[site].double() * d).sum((1, 2)),
            rise,
            atol=bound * float(rise.abs().max()) + 1e-5,
        )
    assert not any(p.requires_grad or p.grad is not None for p in release.model.parameters())


def test_many_sites_in_one_pass_and_only_the_positions_asked_for():
    model, batch, sites = (
        llama().eval(),
        tokens(),
        [Site(f"model.layers.{i}") for i in (2, 0, 1)] + [Site("model.layers.1", "in")],
    )
    all_of_them = capture(model, sites, batch)
    assert list(all_of_them) == sites and torch.equal(
        all_of_them[Site("model.layers.0")], all_of_them[Site("model.layers.1", "in")]
    )
    at_end = capture(model, sites, batch, positions=batch.last)
    assert all(
        torch.equal(at_end[s][:, 0], all_of_them[s][torch.arange(B), batch.last]) for s in sites
    )
    assert torch.equal(
        capture(model, sites, batch, positions=0)[sites[0]][:, 0], all_of_them[sites[0]][:, 0]
    )
    net, table = mlp().eval(), Batch(args=(numbers(),), n=B)
    assert capture(net, [Site("1")], table, positions=3)[Site("1")].shape == (
        B,
        1,
        8,
    )  # a plain network has no positions


def test_the_forward_stops_after_the_last_site():
    net, passed = mlp().eval(), []
    net[4].register_forward_hook(lambda *_: passed.append(1))
    batch = Batch(args=(numbers(),), n=B)
    capture(net, [Site("0"), Site("2")], batch)
    assert not passed
    capture(net, [Site("0"), Site("2")], batch, stop=False)
    assert passed and not any(
        m._forward_hooks or m._forward_pre_hooks for n, m in net.named_modules() if n != "4"
    )


def test_a_model_that_catches_exceptions_does_not_catch_the_stop():
    model, batch = seeded(Keywords).eval(), Batch(args=(numbers(),), n=B)
    inner = capture(model, [Site("block.inner")], batch)[Site("block.inner")]
    assert torch.allclose(inner[:, 0], model.block.inner(model.first(batch.args[0])))


def test_captured_values_survive_in_place_operations():
    net, batch = mlp().eval(), Batch(args=(numbers(),), n=B)
    acts = capture(net, [Site("0"), Site("1")], batch, stop=False)
    assert (
        torch.allclose(acts[Site("0")][:, 0], net[0](batch.args[0]))
        and (acts[Site("0")] < 0).any()
        and (acts[Site("1")] >= 0).all()
    )
    _, kept, _ = grad_at_sites(Asked(net, first), [Site("0"), Site("1")], batch)
    assert torch.equal(kept[Site("0")], acts[Site("0")]) and torch.equal(
        kept[Site("1")], acts[Site("1")]
    )
    new = torch.randn(B, 1, 8)
    before = new.clone()
    run_spliced(net, {Site("0"): new}, batch)
    assert torch.equal(new, before)


def test_gradients_at_several_sites_are_those_at_each_alone():
    release, batch = Asked(llama(), at_last), tokens()
    sites = [
        Site("model.layers.0"),
        Site("model.layers.2"),
        Site("model.layers.1.post_attention_layernorm", "in"),
    ]
    together = grad_at_sites(release, sites, batch)[2]
    for s in sites:
        assert torch.allclose(together[s], grad_at_sites(release, [s], batch)[2][s], atol=1e-5)


def test_the_gradient_is_that_of_a_splice_also_where_the_input_goes_around_the_module():
    "The sum beside the norm is another path: neither a splice nor the gradient takes it, with an earlier site in the same pass or without."
    release, batch = Asked(llama(), at_last), tokens()
    norm, early = Site("model.layers.1.post_attention_layernorm", "in"), Site("model.layers.0")
    _, acts, grads = grad_at_sites(release, [early, norm], batch)
    d = 1e-2 * torch.randn(acts[norm].shape, generator=torch.Generator().manual_seed(0))
    rise = spliced(release, norm, batch, acts[norm] + d) - spliced(
        release, norm, batch, acts[norm] - d
    )
    assert torch.allclose(
        2 * (grads[norm] * d).sum((1, 2)), rise, atol=0.02 * float(rise.abs().max())
    )


def test_the_gradient_of_a_linear_model_is_its_weights():
    net = nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 1))
    _, _, grads = grad_at_sites(Asked(net, first), [Site("0")], Batch(args=(numbers(),), n=B))
    assert torch.equal(grads[Site("0")][:, 0], net[2].weight.expand(B, 3))


def test_gradients_work_under_no_grad_and_a_detached_decision_is_named():
    release, batch = Asked(mlp(), first), Batch(args=(numbers(),), n=B)
    with torch.no_grad():
        assert grad_at_sites(release, [Site("1")], batch)[2][Site("1")].abs().sum() > 0
    with pytest.raises(InterpkitError, match="gradient") as e:
        grad_at_sites(Asked(mlp(), lambda out, b: out[:, 0].detach()), [Site("1")], batch)
    assert e.value.code == 65


@pytest.mark.parametrize("build, prefix", [(llama, "model.layers"), (gpt2, "transformer.h")])
def test_hook_names_of_transformer_lens(build, prefix):
    "resid_post = resid_mid + mlp_out and resid_mid = resid_pre + attn_out, as TransformerLens defines them."
    model, batch, name = (
        build().eval(),
        tokens(),
        lambda n: site_from_hook_name(f"blocks.1.hook_{n}", model),
    )
    sites = {
        n: name(n)
        for n in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_in")
    }
    x = {n: capture(model, [s], batch)[s] for n, s in sites.items()}
    assert sites["resid_pre"] == Site(f"{prefix}.1", "in") and torch.equal(
        x["resid_pre"], capture(model, [Site(f"{prefix}.0")], batch)[Site(f"{prefix}.0")]
    )
    assert torch.allclose(
        x["resid_mid"], x["resid_pre"] + x["attn_out"], atol=1e-4
    ) and torch.allclose(x["resid_post"], x["resid_mid"] + x["mlp_out"], atol=1e-4)
    assert (
        torch.equal(x["mlp_in"], x["resid_mid"])
        and x["attn_out"].abs().sum() > 0
        and x["mlp_out"].abs().sum() > 0
    )
    for bad in ("blocks.1.hook_resid_pots", "blocks.9.hook_resid_post"):
        with pytest.raises(InterpkitError):
            site_from_hook_name(bad, model)
    back = {n: hook_name_from_site(s) for n, s in sites.items()}
    assert back == {n: f"blocks.1.hook_{n}" for n in sites} | dict(
        resid_mid="blocks.1.hook_mlp_in"
    )  # one tensor; written there, it reaches the MLP alone
    assert [
        hook_name_from_site(Site(s))
        for s in (
            f"{prefix}.12",
            f"{prefix}.1.mlp.act",
            f"{prefix}.1x",
            f"my{prefix}.1",
            prefix,
            "lm_head",
        )
    ] == ["blocks.12.hook_resid_post"] + [None] * 5


def raised(code, fn, *parts):
    with pytest.raises(InterpkitError) as e:
        fn()
    assert e.value.code == code, e.value
    for p in parts:
        assert p in str(e.value), (p, str(e.value))


LLAMA_LIKE, NORMS = (
    ("post_attention_layernorm:in", "self_attn:out", "mlp:out"),
    ("post_attention_layernorm:out", "post_feedforward_layernorm:out"),
)
KNOWN = dict(
    Llama=LLAMA_LIKE,
    Mistral=LLAMA_LIKE,
    Qwen2=LLAMA_LIKE,
    Qwen3=LLAMA_LIKE,
    Phi3=LLAMA_LIKE,
    Gemma=LLAMA_LIKE,
    StarcoderTwo=LLAMA_LIKE,
    GPT2=("ln_2:in", "attn:out", "mlp:out"),
    GPTNeo=("ln_2:in", "attn:out", "mlp:out"),
    GPTBigCode=("ln_2:in", "attn:out", "mlp:out"),
    Gemma2=("pre_feedforward_layernorm:in", *NORMS),
    Gemma3=("pre_feedforward_layernorm:in", *NORMS),
    Olmo2=("mlp:in", *NORMS),
    Olmo3=("mlp:in", *NORMS),
)
OTHERS = dict(
    GPTNeoX={},
    Cohere={},
    Phi={},
    GPTJ=dict(rotary_dim=4),
    OpenAIGPT={},
    Granite=dict(residual_multiplier=0.5),
    Glm4={},
    StableLm=dict(use_parallel_residual=True),
    StableLmSerial=dict(use_parallel_residual=False),
    Falcon={},
    Chameleon=dict(swin_norm=True),
    MiniMax=dict(num_local_experts=2),
    Mamba={},
)


def tiny(family, **more):
    "A model of a family with two blocks; norms have random weights, so that leaving one out is seen."
    import transformers

    family = dict(StarcoderTwo="Starcoder2", StableLmSerial="StableLm").get(family, family)
    config = dict(Gemma3="Gemma3TextConfig").get(family, f"{family}Config")
    head = next(
        h
        for h in (
            f"{family}ForCausalLM",
            f"{family}LMHeadModel",
            f"{family}ForConditionalGeneration",
        )
        if hasattr(transformers, h)
    )
    old = family in ("GPT2", "GPTBigCode", "OpenAIGPT", "GPTJ")
    sizes = (
        dict(n_embd=16, n_layer=2, n_head=2, n_positions=16)
        if old
        else dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    )
    if not old and family not in ("GPTNeo", "Falcon", "Mamba"):
        sizes |= dict(intermediate_size=32, num_key_value_heads=2, head_dim=8)
    if family == "GPTNeo":
        sizes = dict(
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=16,
        )
    if family == "Chameleon":
        sizes |= dict(
            vq_config=dict(
                embed_dim=8,
                num_embeddings=4,
                base_channels=32,
                channel_multiplier=[1],
                num_res_blocks=1,
                latent_channels=8,
                resolution=8,
                in_channels=3,
            ),
            vocabulary_map={"<image>": 3},
        )
    torch.manual_seed(0)
    model = getattr(transformers, head)(
        getattr(transformers, config)(
            vocab_size=V,
            initializer_range=0.5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **sizes,
            **more,
        )
    ).eval()
    for n, p in model.named_parameters():
        if "norm" in n or "ln_" in n:
            torch.nn.init.normal_(p, 1.0, 0.3)
    return model


def blocks_of(model):
    return next(
        m
        for m in (
            getattr(getattr(model, "model", None), "layers", None),
            getattr(getattr(model, "transformer", None), "h", None),
        )
        if m is not None
    )


def seen(model, sites, batch) -> dict:
    "What passes sites in one forward, by PyTorch's own hooks."
    first, found, handles = lambda x: x[0] if isinstance(x, tuple) else x, {}, []
    for s in sites:
        module = model.get_submodule(s.module)
        if s.side == "in":
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, a, k, s=s: found.__setitem__(
                        s, k["hidden_states"] if "hidden_states" in k else a[0]
                    ),
                    with_kwargs=True,
                )
            )
        else:
            handles.append(
                module.register_forward_hook(
                    lambda m, a, out, s=s: found.__setitem__(s, first(out))
                )
            )
    with torch.no_grad():
        model(**batch.kwargs, use_cache=False)
    for h in handles:
        h.remove()
    return found


@pytest.mark.parametrize("family", KNOWN)
def test_what_the_mlp_reads_and_what_it_adds_make_up_the_stream(family):
    "Values decide: mid = pre + attn_out and post = mid + mlp_out, at the sites that names give."
    model, batch = tiny(family), tokens()
    sources, targets = mlp_sites(model)
    for i in range(2):
        s = {
            n: site_from_hook_name(f"blocks.{i}.hook_{n}", model)
            for n in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out")
        }
        x = seen(model, set(s.values()), batch)
        pre, mid, post, attn, mlp = (
            x[s[n]] for n in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        )
        assert (
            (sources[i], targets[i]) == (s["mlp_in"], s["mlp_out"])
            and s["mlp_in"] == s["resid_mid"]
            and len(sources) == len(targets) == 2
        )
        assert torch.allclose(pre + attn, mid, atol=1e-4) and torch.allclose(
            mid + mlp, post, atol=1e-4
        ), family
        assert min(float(t.abs().mean()) for t in (pre, attn, mlp)) > 1e-2  # no sum holds by zeros
        assert (
            tuple(str(s[n]).split(f".{i}.")[1] for n in ("resid_mid", "attn_out", "mlp_out"))
            == KNOWN[family]
        )
        back = {n: hook_name_from_site(t, model) for n, t in s.items()}
        assert back == {n: f"blocks.{i}.hook_{n}" for n in s} | dict(
            resid_mid=f"blocks.{i}.hook_mlp_in"
        )


@pytest.mark.parametrize("family", OTHERS)
def test_blocks_that_only_look_alike_are_refused(family):
    model = tiny(family, **OTHERS[family])
    raised(64, lambda: mlp_sites(model), "targets=['...:out']")
    for n in ("resid_mid", "attn_out", "mlp_in", "mlp_out"):
        raised(64, lambda: site_from_hook_name(f"blocks.0.hook_{n}", model))


def test_what_goes_between_blocks_needs_no_kind():
    model = tiny("Cohere")
    assert site_from_hook_name("blocks.1.hook_resid_post", model) == Site(
        "model.layers.1"
    ) and site_from_hook_name("blocks.1.hook_resid_pre", model) == Site("model.layers.1", "in")
    assert (
        hook_name_from_site(Site("model.layers.1"), model) == "blocks.1.hook_resid_post"
        and hook_name_from_site(Site("model.layers.1.mlp"), model) is None
    )


@pytest.mark.parametrize("change", ["module", "parameter", "buffer", "number", "one block"])
def test_a_block_that_holds_more_is_refused(change):
    model = tiny("Llama")
    block = model.model.layers[1]
    if change == "module":
        block.adapter = nn.Linear(16, 16)
    elif change == "parameter":
        block.gate = nn.Parameter(torch.ones(1))
    elif change == "buffer":
        block.register_buffer("layer_scalar", torch.ones(1))
    elif change == "number":
        block.residual_scale = 2.0
    else:
        model.model.layers[1] = tiny("Gemma2").model.layers[1]
    if change == "one block":
        assert mlp_sites(model)[0][1] == Site(
            "model.layers.1.pre_feedforward_layernorm", "in"
        )  # each block by what it holds
    else:
        raised(64, lambda: mlp_sites(model), "LlamaDecoderLayer")


def test_names_that_have_two_meanings_need_the_model_to_be_told_apart():
    "Without a model they mean what they mean in Llama."
    gemma, at = tiny("Gemma2"), "model.layers.0"
    both = lambda s: (
        hook_name_from_site(Site.parse(f"{at}.{s}")),
        hook_name_from_site(Site.parse(f"{at}.{s}"), gemma),
    )
    assert both("post_attention_layernorm:in") == ("blocks.0.hook_mlp_in", None) and both(
        "mlp:out"
    ) == ("blocks.0.hook_mlp_out", None)
    assert both("post_attention_layernorm:out") == (None, "blocks.0.hook_attn_out")
    assert (
        both("pre_feedforward_layernorm:in") == ("blocks.0.hook_mlp_in",) * 2
        and both("post_feedforward_layernorm:out") == ("blocks.0.hook_mlp_out",) * 2
    )


@pytest.mark.parametrize(
    "family, module",
    [
        ("Llama", "mlp"),
        ("Gemma2", "post_feedforward_layernorm"),
        ("Olmo2", "post_feedforward_layernorm"),
    ],
)
def test_hooks_of_the_mlp_itself_are_not_those_of_the_stream(family, module):
    from interpkit.bridges.circuit_tracer import _hook, _sites

    model, at = tiny(family), "model.layers.{}".format
    assert _sites("mlp.hook_in", "mlp.hook_out", 2, model) == (
        tuple(Site(f"{at(i)}.mlp", "in") for i in range(2)),
        tuple(Site(f"{at(i)}.mlp") for i in range(2)),
    )
    sources, targets = _sites("hook_resid_mid", "hook_mlp_out", 2, model)
    assert (sources, targets) == mlp_sites(model) and targets[1] == Site(f"{at(1)}.{module}")
    assert _hook(targets[1], model) == (1, "hook_mlp_out") and _hook(sources[1], model) == (
        1,
        "mlp.hook_in" if family == "Olmo2" else "hook_resid_mid",
    )


def test_what_is_no_site_is_named():
    model, batch = llama().eval(), tokens()
    raised(64, lambda: Site.parse("model.layers.1:above"), "model.layers.1:above")
    raised(64, lambda: Site.parse(""))
    raised(65, lambda: capture(model, [Site("model.layer.1")], batch), "model.layers.1")
    raised(
        65,
        lambda: run_spliced(model, {Site("model.layers.1"): torch.zeros(B, T, 15)}, batch),
        "model.layers.1:out",
        "[7, 6, 16]",
        "[7, 6, 15]",
    )
    raised(
        65, lambda: capture(model, [Site("model.embed_tokens", "in")], batch), "floating"
    )  # token ids
    net = nn.Sequential(nn.GRU(4, 3)).eval()
    raised(
        65,
        lambda: capture(net, [Site("0")], Batch(args=(torch.randn(5, B, 4),), n=B)),
        "batch_first",
    )  # sequences come second
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.a, self.b, self.idle = (
            nn.ReLU(),
            nn.Linear(4, 4),
            nn.Linear(4, 1),
            nn.Linear(2, 2),
        )

    def forward(self, x):
        return self.b(self.act(self.a(self.act(x))))


def test_a_module_that_runs_twice_or_never_is_no_site():
    release, batch = Asked(Twice(), first), Batch(args=(numbers(),), n=B)
    for fn in (
        lambda s: Prefix(release, [s], batch),
        lambda s: run_spliced(release.model, {s: lambda h: h}, batch),
        lambda s: grad_at_sites(release, [s], batch),
    ):
        raised(65, lambda: fn(Site("act")), "more than once")
        raised(65, lambda: fn(Site("idle")), "does not use")
    raised(65, lambda: capture(release.model, [Site("idle")], batch), "does not use")
    prefix = Prefix(release, [Site("a")], batch)  # what runs twice is not answered from memory
    assert prefix.mode[Site("a")] == "from site"
    new = torch.randn(B, 1, 4)
    assert torch.allclose(
        prefix.run(Site("a"), torch.arange(B), new),
        spliced(release, Site("a"), batch, new),
        atol=1e-6,
    )


class Remembers(nn.Module):
    "Hands something on beside its output, as some attention layers do."

    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x)
        return self.head(self.hidden(h) + self.first.seen)


class Seen(nn.Linear):
    def forward(self, x):
        out = super().forward(x)
        self.seen = out.sin()
        return out


def test_a_module_with_a_memory_of_its_own_falls_back_to_the_full_forward():
    net = seeded(Remembers)
    net.first = Seen(4, 8)
    release, batch = Asked(net, first), Batch(args=(numbers(),), n=B)
    prefix = Prefix(release, [Site("hidden")], batch)
    assert prefix.mode[Site("hidden")] == "full"
    index, new = torch.arange(B).flip(0), torch.randn(B, 1, 8)
    assert torch.allclose(
        prefix.run(Site("hidden"), index, new),
        spliced(release, Site("hidden"), batch.take(index), new),
        atol=1e-6,
    )


class Meets(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x)
        return self.head((h - h.mean(0)) * torch.arange(len(h))[:, None])


def test_sequences_that_depend_on_each_other_are_refused():
    raised(
        65,
        lambda: Prefix(Asked(seeded(Meets), first), [Site("first")], Batch(args=(numbers(),), n=B)),
        "sequences",
    )


def test_a_forward_set_on_the_instance_survives_a_prefix():
    net, batch = mlp(), Batch(args=(numbers(),), n=B)
    own = net[0].forward
    net[0].forward = lambda x: own(x) + 1
    release = Asked(net, first)
    bare = release.decide(batch.run(net), batch)
    prefix = Prefix(release, [Site("2")], batch)
    assert torch.allclose(
        prefix.run(Site("2"), torch.arange(B), prefix.acts[Site("2")]), bare
    ) and torch.equal(release.decide(batch.run(net), batch), bare)
    assert "forward" not in net[1].__dict__


def test_a_batch_of_one_sequence_and_shared_arguments():
    release = Asked(llama(), at_last)
    one = tokens(1)
    site = Site("model.layers.1")
    prefix = Prefix(release, [site], one)
    assert torch.allclose(
        prefix.run(site, torch.zeros(3, dtype=torch.long), prefix.acts[site].expand(3, -1, -1)),
        prefix.decision.expand(3),
        atol=1e-5,
    )
    batch = Batch(args=(torch.arange(3.0), torch.tensor([5.0, 6, 7])), n=3, shared=frozenset([1]))
    assert batch.take(torch.tensor([2, 0])).args[0].tolist() == [2, 0] and batch.take(
        torch.tensor([2, 0])
    ).args[1].tolist() == [5, 6, 7]


def test_a_hook_that_fails_leaves_no_hook_behind():
    net, batch = mlp(), Batch(args=(numbers(),), n=B)
    with pytest.raises(InterpkitError), hooked(net, {Site("0"): lambda t: t[:, :, :2]}, B):
        batch.run(net)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [n for n in CASES if "table" not in n and "place" not in n])
def test_cuda_gives_what_the_cpu_gives(name):
    build, batch, decision, site, mode = CASES[name]
    on_cpu, on_gpu, batch, site = (
        Asked(build(), decision),
        Asked(build().cuda(), decision),
        batch(),
        Site.parse(site),
    )
    a, b = Prefix(on_cpu, [site], batch), Prefix(on_gpu, [site], batch.to("cuda"))
    index = torch.randint(0, batch.n, (23,), generator=torch.Generator().manual_seed(0))
    less = a.acts[site][index] * 0.5
    assert b.mode[site] == mode and torch.allclose(
        a.run(site, index, less), b.run(site, index.cuda(), less.cuda()).cpu(), atol=1e-3, rtol=1e-3
    )
    assert torch.allclose(
        grad_at_sites(on_cpu, [site], batch)[2][site],
        grad_at_sites(on_gpu, [site], batch.to("cuda"))[2][site].cpu(),
        atol=1e-3,
        rtol=1e-2,
    )
