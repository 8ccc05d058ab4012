"Attribution graphs: exact sums, true edges, many kinds of model, and what is refused."

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from small_language import causal
from small_wirings import Net
from torch import nn

from interpkit import attribution_graph
from interpkit.core.statistics import clopper_pearson
from interpkit.data.demo import demo_folder, demo_rows
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.explain import graph as rooms
from interpkit.explain.circuit import AttributionGraph
from interpkit.explain.constructed import constructed, found_edges, neurons_of
from interpkit.explain.graph_figure import graph_svg
from interpkit.explain.influence import Links, graph_scores, influence, pruned, shares
from interpkit.model.block_kinds import mlp_sites
from interpkit.model.capture import capture
from interpkit.model.releases import Release

IDS = [1, 5, 6, 9, 3, 7]
ROW = pd.DataFrame(dict(input_ids=[IDS], sequence_id=["a"]))
COLUMNS = pd.DataFrame([[0.4, -1.2, 0.9, 0.3, -0.5]], columns=list("abcde")).astype("float32")
SIZES = dict(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=3)
DIFFERENCE = dict(kind="logit_difference", positive=4, negative=3)


def at_random(d: int, d_out: int, targets: int = 1, skip: bool = False, F: int = 24) -> SiteWeights:
    "Weights of a dictionary that explains little, so that error nodes have to carry the rest."
    W = torch.randn(d, F) / d**0.5
    zero = torch.zeros(F)
    W_dec = 0.3 * torch.randn(F, targets, d_out)
    W_skip = 0.1 * torch.randn(d, d_out) if skip else None
    return SiteWeights(W, 0.1 * torch.randn(F), zero + 0.01, W_dec, torch.randn(d_out), W_skip)


def stand_ins(release, wiring="clt", row=ROW, layers=None, skip=False) -> Dictionary:
    "Transcoders at random for the MLPs of a release."
    torch.manual_seed(0)
    reads, writes = mlp_sites(release.model)
    layers = range(len(reads)) if layers is None else layers
    reads, writes = (tuple(sites[i] for i in layers) for sites in (reads, writes))
    acts = capture(release.model, [*reads, *writes], release.batch(row), stop=False)
    n = len(reads)
    weights = tuple(
        at_random(acts[s].shape[-1], acts[t].shape[-1], n - i if wiring == "clt" else 1, skip)
        for i, (s, t) in enumerate(zip(reads, writes, strict=True))
    )
    return Dictionary(reads, weights, wiring=wiring, targets=writes)


def language(kind: str, **more):
    "A small language model of one kind, without training."
    import transformers as T

    torch.manual_seed(0)
    heads = dict(num_attention_heads=2)
    models = {
        "llama": lambda: T.LlamaForCausalLM(
            T.LlamaConfig(**SIZES, **heads, num_key_value_heads=1, **more)
        ),
        "gemma2": lambda: T.Gemma2ForCausalLM(
            T.Gemma2Config(**SIZES, **heads, num_key_value_heads=2, head_dim=8)
        ),
        "gpt2": lambda: T.GPT2LMHeadModel(
            T.GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=2, n_positions=32)
        ),
        "neox": lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**SIZES, **heads)),
        "opt": lambda: T.OPTForCausalLM(
            T.OPTConfig(
                vocab_size=20,
                hidden_size=16,
                ffn_dim=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=32,
                word_embed_proj_dim=16,
            )
        ),
        "qwen3": lambda: T.Qwen3ForCausalLM(
            T.Qwen3Config(**SIZES, **heads, num_key_value_heads=1, head_dim=8)
        ),
    }
    model = models[kind]()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))  # away from tiny numbers, so that features fire
    inputs = dict(kind="tokens", bos=1)
    return Release.from_module(model.eval(), inputs, DIFFERENCE, name=kind, device="cpu")


def net(model=None, prefix="", decision=None) -> tuple[Release, Dictionary]:
    "A residual network on columns, with transcoders for its three blocks."
    torch.manual_seed(0)
    release = Release.from_module(
        (model or Net()).eval(),
        inputs=dict(kind="columns", columns=list("abcde")),
        decision=decision,
        sites=[f"{prefix}blocks.0:out"],
        device="cpu",
    )
    weights = tuple(at_random(10, 10) for _ in range(3))
    sites, targets = (
        tuple(f"{prefix}blocks.{i}:{side}" for i in range(3)) for side in ("in", "out")
    )
    return release, Dictionary(sites, weights, wiring="per_layer", targets=targets)


@pytest.fixture(scope="module")
def demo():
    release = Release.load(demo_folder() / "releases" / "v1", device="cpu")
    clt = Dictionary.load(demo_folder() / "clt")
    rows = demo_rows("v1", 60)
    row = rows.iloc[[int(rows["input_ids"].map(len).argmin())]]
    return release, clt, row, attribution_graph(release, clt, row)


def test_a_board_takes_only_what_its_graph_was_made_from(demo):
    release, clt, row, graph = demo
    assert graph.show(clt, release=release, row=row).steer([])["decision"] == pytest.approx(
        graph.decision, abs=1e-4
    )
    other = demo_rows("v1", 60).iloc[[3]]
    refused(lambda: graph.show(clt, release=release, row=other), "decides")
    doubled = replace(release, decision=lambda out, batch: 2 * release.decide(out, batch))
    refused(lambda: graph.show(clt, release=doubled, row=row), "decides")
    weights = tuple(w.map(lambda t: 2 * t) for w in clt.weights)
    refused(lambda: graph.show(replace(clt, weights=weights)), "through which")


# Sums


def test_parts_add_up_to_the_decision_and_to_each_feature(demo):
    release, _, row, graph = demo
    total = graph.check()
    assert abs(total.decision - float(release.run(row))) < 1e-4
    assert total.gap < 1e-4 and total.largest_feature_gap < 1e-3
    assert abs(total.features) > 0.1


def test_a_pooled_output_is_not_counted_again_in_the_states_behind_it():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES, num_attention_heads=2, max_position_embeddings=16))
    inputs = dict(kind="tokens", bos=1)
    release = Release.from_module(model, inputs, lambda out: out.pooler_output[:, 3], device="cpu")
    site, W = "encoder.layer.2:out", at_random(16, 16)
    graph = attribution_graph(release, Dictionary((site,), (W,)), ROW)
    seen = {}

    def leaf(_, args, out):
        seen["at"] = (out[0] if isinstance(out, tuple) else out).detach().requires_grad_()
        return (seen["at"], *out[1:]) if isinstance(out, tuple) else seen["at"]

    handle = model.encoder.layer[2].register_forward_hook(leaf)
    output = release.batch(ROW).run(model)
    handle.remove()
    (slope,) = torch.autograd.grad(output.pooler_output[0, 3], seen["at"])
    found = graph.whole[graph.whole["kind"] == "feature"]
    writes = W.W_dec[found["own"].to_numpy(), 0] * slope[0, found["position"].to_numpy()]
    true = writes.sum(1) * torch.tensor(found["activation"].to_numpy().astype("float32"))
    assert len(found) and torch.allclose(
        graph.links.rows[-1, found.index.to_numpy()], true, atol=1e-5
    )


class Adding(nn.Module):
    "A block that adds in place to what it is given."

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 10))

    def forward(self, x):
        x += self.mlp(x)
        return x


class AddingNet(Net):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Adding() for _ in range(3))

    def forward(self, x):
        return self.head(nn.Sequential(*self.blocks)(self.first(x)))


@pytest.mark.parametrize("skip", [False, True])
def test_what_a_block_adds_in_place_is_not_what_its_features_read(skip):
    torch.manual_seed(0)
    model = AddingNet()
    release = Release.from_module(
        model.eval(), dict(kind="columns", columns=list("abcde")), device="cpu"
    )
    weights = tuple(at_random(10, 10, skip=skip) for _ in range(3))
    reads, writes = ([f"blocks.{i}.mlp:{side}" for i in range(3)] for side in ("in", "out"))
    dictionary = Dictionary(reads, weights, wiring="per_layer", targets=writes)
    graph = attribution_graph(release, dictionary, COLUMNS)
    acts = capture(model, dictionary.sites, release.batch(COLUMNS), stop=False)
    for site, nodes in graph.whole[graph.whole["kind"] == "feature"].groupby("site"):
        true = dictionary.at(site).encode(acts[dictionary.sites[reads.index(site)]])[0, 0]
        assert np.allclose(nodes["activation"], true[nodes["own"].to_numpy()], atol=1e-5)
        assert int((true > 0).sum()) == len(nodes)
    total = graph.check()
    assert total.gap < 1e-4 and total.largest_feature_gap < 1e-3
    with torch.no_grad(), dictionary.replaced(release):
        live = float(release.run(COLUMNS))
    due = release.model.first(torch.tensor(COLUMNS.to_numpy()))
    for w in weights:
        due = due + w.decode(w.encode(due)) + (due @ w.W_skip if skip else 0)
    assert live == pytest.approx(float(release.model.head(due)), abs=1e-4)


def test_nodes_of_mlps_without_features_have_names_and_layers_of_their_own_in_json():
    release = language("llama")
    for layers in ([1], [0, 2], [0, 1, 2]):
        made = attribution_graph(release, stand_ins(release, layers=layers), ROW).prune(1, 1)
        nodes = {n["node_id"]: n for n in made.to_json()["nodes"]}
        assert len(nodes) == len(made.nodes)
        kinds = [(n["feature_type"], int(n["layer"])) for n in nodes.values() if n["layer"] != "E"]
        assert {at for kind, at in kinds if "transcoder" in kind} <= set(layers)
        assert {at for kind, at in kinds if "error" in kind} == {0, 1, 2}
        assert {at for kind, at in kinds if kind == "logit"} == {4}


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "neox", "opt", "qwen3"])
def test_parts_add_up_on_language_models(kind):
    release = language(kind)
    graph = attribution_graph(release, stand_ins(release), ROW)
    total = graph.check()
    assert graph.about["straight"] == (kind != "gemma2")  # which caps its logits by a tanh
    assert graph.about["active"] > 10
    assert total.gap < 1e-4 and total.largest_feature_gap < 1e-3, total
    assert total.features != 0 and total.errors != 0 and total.inputs != 0


def test_eager_attention_gives_the_same_graph():
    fused, by_steps = language("llama"), language("llama", attn_implementation="eager")
    dictionary = stand_ins(fused)
    one, other = (attribution_graph(r, dictionary, ROW) for r in (fused, by_steps))
    assert np.allclose(one.rows, other.rows, atol=1e-4)


@pytest.mark.parametrize("wiring", ["per_layer", "transcoder"])
def test_a_skip_and_blocks_that_are_left_out_add_up(wiring):
    release = language("gpt2")
    layers = [1] if wiring == "transcoder" else [0, 2]
    graph = attribution_graph(release, stand_ins(release, wiring, layers=layers, skip=True), ROW)
    total = graph.check()
    assert total.gap < 1e-4 and total.largest_feature_gap < 1e-3, total
    left_out = {f"transformer.h.{i}.mlp:out" for i in range(3) if i not in layers}
    assert left_out <= set(graph.whole.loc[graph.whole["kind"] == "error", "site"])


def test_an_edge_is_what_the_target_loses_when_the_source_is_not_written():
    "Held patterns, scales and other features: a forward without one feature shows its edges."
    from interpkit.explain.linear import again, cut_forward, cuts_for, input_places

    release = language("llama")
    clt = stand_ins(release)
    graph = attribution_graph(release, clt, ROW)
    cuts = cuts_for(release, clt, input_places(release, release.batch(ROW))[0])
    cut = cut_forward(release, clt, release.batch(ROW), cuts)
    first = graph.whole[(graph.whole["kind"] == "feature")].iloc[2]
    put = {site: t.detach().clone() for site, t in cut.leaves.items()}
    for target, W in clt.writes(first["site"]).items():
        put[target][0, first["position"]] -= first["activation"] * W[first["own"]]
    reads, value = again(release, clt, cuts, cut, put)
    column = list(graph.whole["id"]).index(first["id"])
    assert np.isclose(float(cut.value.detach()) - value, graph.rows[-1, column], atol=1e-4)
    last = clt.sites[-1]
    lost = (cut.reads[last] - reads[last])[0] @ clt.at(last).W_enc
    for row, node in zip(graph.rows[:-1], graph.target[:-1], strict=True):
        to = graph.whole.iloc[node]
        if to["site"] == str(last):
            assert np.isclose(float(lost[to["position"], to["own"]]), row[column], atol=1e-3)


def test_a_table_has_a_node_per_column_and_a_bent_decision_its_straight_line():
    class Probability(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = Net()

        def forward(self, x):
            return torch.sigmoid(self.m(x))

    release, dictionary = net()
    graph = attribution_graph(release, dictionary, COLUMNS)
    inputs = graph.whole[graph.whole["kind"] == "input"]
    assert inputs["label"].tolist() == list("abcde")
    assert graph.check().gap < 1e-4 and graph.about["straight"]
    bent, same = net(Probability(), "m.")
    curved = attribution_graph(bent, same, COLUMNS)
    assert not curved.about["straight"] and curved.check().gap < 1e-4
    assert "straight line" in curved._repr_html_()


def test_log_probabilities_are_told_as_bent_and_differences_are_not():
    release = language("llama")
    clt = stand_ins(release)
    asked = dict(kind="top_logprob")
    assert not attribution_graph(release, clt, ROW, decision=asked).about["straight"]
    shifted = attribution_graph(
        release, clt, ROW, decision=lambda out, b: out.logits[:, -1, 4] - out.logits[:, -1, 3] - 7
    )
    assert shifted.about["straight"] and shifted.check().gap < 1e-4
    plain = attribution_graph(release, clt, ROW)
    assert np.isclose(shifted.about["bias"], plain.about["bias"] - 7, atol=1e-4)


def test_encoders_of_pytorch_and_hooked_transformers_add_up():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(20, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.enc, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 1)

        def forward(self, ids):
            return self.head(self.enc(self.emb(ids)).mean(1))

    def ids_of(rows):
        return torch.tensor([list(x) for x in rows["input_ids"]])

    torch.manual_seed(0)
    release = Release.from_module(Encoder().eval(), ids_of, sites=["enc.layers.0"], device="cpu")
    total = attribution_graph(release, stand_ins(release), ROW).check()
    assert total.gap < 1e-4 and total.largest_feature_gap < 1e-3


def test_hook_points_of_transformer_lens_are_sites():
    lens = pytest.importorskip("transformer_lens")
    config = lens.HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_ctx=32,
        d_head=8,
        n_heads=2,
        d_mlp=32,
        d_vocab=20,
        act_fn="gelu",
        normalization_type="LN",
        seed=0,
        device="cpu",
    )
    release = Release.from_module(
        lens.HookedTransformer(config, move_to_device=False).eval(),
        lambda rows: dict(input=torch.tensor([list(x) for x in rows["input_ids"]])),
        lambda out: out[:, -1, 4] - out[:, -1, 3],
        sites=["blocks.0.hook_resid_post"],
        device="cpu",
    )
    torch.manual_seed(0)
    sites, targets = (
        tuple(f"blocks.{i}.{hook}:out" for i in range(2))
        for hook in ("hook_resid_mid", "hook_mlp_out")
    )
    weights = (at_random(16, 16, 2), at_random(16, 16, 1))
    graph = attribution_graph(
        release, Dictionary(sites, weights, wiring="clt", targets=targets), ROW
    )
    total = graph.check()
    assert total.gap < 1e-4 and total.largest_feature_gap < 1e-3 and total.inputs != 0


# SAEs


def test_between_sites_edges_are_gradients_and_an_sae_at_the_inputs_is_cut_there():
    release = causal(0, "small")
    d = release.model.config.hidden_size
    torch.manual_seed(0)
    embedded = "model.embed_tokens:out"
    saes = Dictionary((embedded, "model.layers.1:out"), (at_random(d, d), at_random(d, d)))
    graph = attribution_graph(release, saes, ROW.assign(input_ids=[[1, 4, 5, 6, 2]]))
    assert graph.check().gap < 1e-4
    links = graph.links
    sites = graph.whole["site"].to_numpy()
    from_first = torch.from_numpy(sites == embedded)
    to_second = torch.from_numpy(sites[graph.target] == "model.layers.1:out")
    assert links.rows[to_second][:, from_first].abs().sum() > 0
    inputs = links.of("input")
    assert links.rows[to_second][:, inputs].abs().sum() == 0  # all of it passes the first SAE


# True edges


def test_true_edges_are_the_top_edges():
    "Precision is recall, since as many are taken as are true; >= .95 with a bound of its own."
    right = due = 0
    for seed in range(25):
        release, wiring, row = constructed(seed)
        graph = attribution_graph(
            release, neurons_of(release, "clt" if seed % 2 else "per_layer"), row
        )
        found = found_edges(graph, wiring)
        right, due = right + found[0], due + found[1]
        assert found[2] > 10 * found[1]  # edges among which they were found
    low, high = clopper_pearson(right, due, 0.05)
    assert right / due >= 0.95, (right, due, low)
    assert high > 0.95


def test_without_overlap_all_true_edges_are_found_and_pruning_keeps_them():
    for seed in range(4):
        release, wiring, row = constructed(seed, overlap=0.0)
        graph = attribution_graph(release, neurons_of(release), row)
        right, due, _ = found_edges(graph, wiring)
        assert right == due
        assert graph.scores["replacement"] > 0.99


# Influence


def brute_force(rows, target):
    "Influence by the inverse of I - A, as its definition says."
    n = rows.shape[1]
    A = np.zeros((n, n))
    size = np.abs(rows)
    A[target] = size / np.maximum(size.sum(1, keepdims=True), 1e-10)
    weight = np.zeros(n)
    weight[-1] = 1
    return A, weight @ (np.linalg.inv(np.eye(n) - A) - np.eye(n))


def test_influence_and_scores_are_those_of_their_definition(demo):
    graph = demo[3]
    A, by_hand = brute_force(graph.rows.astype(float), graph.target)
    assert np.allclose(graph.whole["influence"][:-1], by_hand[:-1], atol=1e-5)
    kind = graph.whole["kind"].to_numpy()
    errors, inputs = by_hand[kind == "error"].sum(), by_hand[kind == "input"].sum()
    weight = by_hand.copy()
    weight[-1] += 1
    clean = 1 - A[:, kind == "error"].sum(1)
    assert np.isclose(graph.scores["replacement"], inputs / (inputs + errors), atol=1e-5)
    assert np.isclose(
        graph.scores["completeness"], (clean * weight).sum() / weight.sum(), atol=1e-5
    )


def test_pruning_keeps_shares_and_leaves_no_loose_end(demo):
    graph = demo[3]
    few, most = graph.prune(0.5, 0.8), graph.prune(1, 1)
    assert set(few.nodes["id"]) <= set(most.nodes["id"])
    for shown in (few, graph):
        inner = shown.nodes[shown.nodes["kind"].isin(["feature", "error"])]
        assert set(inner["id"]) <= set(shown.edges["source"])
        features = inner[inner["kind"] == "feature"]
        assert set(features["id"]) <= set(shown.edges["target"])
        ends = set(shown.edges["source"]) | set(shown.edges["target"])
        assert ends <= set(shown.nodes["id"])
    assert graph.prune(0.8, 0.98).edges.equals(graph.edges)


def test_a_graph_without_any_edge_is_no_error():
    links = Links(torch.zeros(1, 3), torch.tensor([2]), np.array(["error", "input", "decision"]))
    assert influence(shares(links.rows), links.target).sum() == 0
    assert pruned(links).edges.shape == (0, 2)
    assert graph_scores(links).replacement == 0


def test_a_dictionary_of_which_nothing_fires_leaves_all_to_error_nodes():
    release, dictionary = net()
    silent = tuple(replace(w, threshold=w.threshold + 1e6) for w in dictionary.weights)
    graph = attribution_graph(release, replace(dictionary, weights=silent), COLUMNS)
    total = graph.check()
    assert total.features == 0 and total.errors != 0 and total.gap < 1e-4
    graph._repr_html_()


# Fewer features


def test_features_without_a_node_count_as_unexplained_and_the_sum_stays(demo):
    release, clt, row, graph = demo
    few = attribution_graph(release, clt, row, max_features=60)
    assert (few.whole["kind"] == "feature").sum() == 60
    total, whole = few.check(), graph.check()
    assert total.gap < 1e-4 and total.largest_feature_gap < 1e-3
    assert abs(total.errors) != abs(whole.errors)
    assert np.isclose(total.features + total.errors, whole.features + whole.errors, atol=1e-3)
    first = graph.whole[graph.whole["kind"] == "feature"].nlargest(10, "influence")
    assert set(first["id"]) <= set(few.whole["id"])
    assert few.scores["completeness"] < graph.scores["completeness"]


def test_what_does_not_fit_is_cut_and_said(demo, monkeypatch):
    release, clt, row, _ = demo
    monkeypatch.setattr(rooms, "LIMIT", 2**21)
    with pytest.warns(UserWarning, match="would take .* GB; the .* of most influence"):
        few = attribution_graph(release, clt, row)
    assert len(few.rows) * rooms.row_bytes(few.about["active"]) <= 2**21 * 1.1


# Kept, shown and sent


def test_a_graph_comes_back_as_it_was_and_a_changed_file_is_refused(demo, tmp_path):
    graph = demo[3]
    folder = graph.save(tmp_path / "graph")
    same = AttributionGraph.load(folder)
    assert same.nodes.equals(graph.nodes) and same.edges.equals(graph.edges)
    assert same.check() == graph.check() and same.scores == graph.scores
    refused(lambda: graph.save(tmp_path / "graph"), "exists")
    (folder / "graph.json").write_text("{}")
    refused(lambda: AttributionGraph.load(folder))


def test_a_picture_has_no_script_and_escapes_what_people_wrote(demo):
    release, clt, row, _ = demo
    evil = replace(clt, labels=tuple(f"<script>{i}</script>'" for i in range(clt.n_features)))
    page = attribution_graph(release, evil, row)._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "currentColor" in graph_svg(demo[3])


def test_json_has_the_form_of_the_front_ends(demo, tmp_path):
    graph = demo[3]
    file = graph.save_json(tmp_path, "one")
    graph.save_json(tmp_path, "two")
    graph.save_json(tmp_path, "one")
    made = json.loads(file.read_text())
    assert set(made) == {"metadata", "qParams", "nodes", "links"}
    for node in made["nodes"]:
        needed = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
        assert needed <= set(node)
        assert isinstance(node["feature"], int) and isinstance(node["layer"], str)
    names = [node["node_id"] for node in made["nodes"]]
    assert len(set(names)) == len(names) == len(graph.nodes)
    decision = next(node for node in made["nodes"] if node["feature_type"] == "logit")
    assert decision["clerp"].split("(p=")[1].split(")")[0] == "1.000"  # as their script reads it
    weights = {(e["source"], e["target"]): e["weight"] for e in made["links"]}
    assert len(weights) == len(graph.edges)
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [g["slug"] for g in listed] == ["two", "one"]


# Refused


def test_what_bends_between_sites_is_named_and_saes_are_offered():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 10), nn.SiLU(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)
    )
    release = Release.from_module(
        model.eval(), dict(kind="columns", columns=list("abcde")), sites=["1:out"], device="cpu"
    )
    last = Dictionary(("4:in",), (at_random(10, 1),), wiring="transcoder", targets=("4:out",))
    error = refused(lambda: attribution_graph(release, last, COLUMNS), "4:in", "SiLU", "tanh")
    assert "wiring='sae'" in error.mend
    saes = Dictionary(("1:out", "3:out"), (at_random(10, 10), at_random(10, 10)))
    assert attribution_graph(release, saes, COLUMNS).check().gap < 1e-4


def test_a_decision_behind_a_softmax_a_late_source_and_rows_that_are_none_are_refused(demo):
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.two = Net(), nn.Linear(1, 2)

        def forward(self, x):
            return torch.softmax(self.two(self.m(x)), -1)

    release, dictionary = net(Softmax(), "m.")
    refused(lambda: attribution_graph(release, dictionary, COLUMNS), "softmax", "logits")
    plain, _ = net()
    late = Dictionary(
        ("blocks.2:in",), (at_random(10, 10),), wiring="transcoder", targets=("blocks.0:out",)
    )
    refused(lambda: attribution_graph(plain, late, COLUMNS), "before blocks.0:out")
    release, clt, row, _ = demo
    refused(lambda: attribution_graph(release, clt, demo_rows("v1", 2)), "one row", code=64)
    refused(lambda: attribution_graph(clt, release, row), "in this order", code=64)
    for wrong in (dict(max_features=0), dict(max_features=2.5), dict(edge_threshold=98)):
        refused(lambda wrong=wrong: attribution_graph(release, clt, row, **wrong), code=64)
