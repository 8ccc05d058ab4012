"A release is a copy: of modules with hooks, closures, locks and wrappers, or it is refused."

import copy
import functools
import threading
import types
import weakref

import pytest
import torch
from helpers import refused
from small_releases import fraud_rows, saved_llama, scorer
from torch import nn

from interpkit.model.copies import other_weights
from interpkit.model.releases import Release


@pytest.fixture(scope="module")
def two():
    return fraud_rows()[["amount", "age"]]


def released(model: nn.Module, **how) -> Release:
    return Release.from_module(model, device="cpu", **how)


def changed(model: nn.Module):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)


# Copied


def compiled_whole():
    net = scorer()
    return torch.compile(net, backend="eager")


def compiled_child():
    net = scorer()
    net[0] = torch.compile(net[0], backend="eager")
    return net


def bound():
    net = scorer()
    net[0].forward = types.MethodType(nn.Linear.forward, net[0])
    return net


def partly():
    net = scorer()
    net[0].forward = functools.partial(nn.functional.linear, weight=net[0].weight)
    return net


def recorded():
    net, seen = scorer(), []
    net[1].register_forward_hook(lambda module, args, out: seen.append(len(net)))
    return net


def dispatched():
    import accelerate

    return accelerate.dispatch_model(scorer(), {"": "cpu"}, force_hooks=True)


def compiled_in_place():
    net = scorer()
    net.compile(backend="eager")
    return net


COPIED = [compiled_whole, compiled_child, compiled_in_place, bound, partly, recorded, dispatched]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", COPIED, ids=lambda build: build.__name__)
def test_a_release_does_not_follow_the_live_module(two, build):
    if build is dispatched:
        pytest.importorskip("accelerate")
    model = build()
    old = released(model)
    before = old.run(two)
    assert old.model is not model
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    if build is dispatched:
        state = {n: t.clone() for n, t in old.model.state_dict().items()}
        changed(old.model)  # nothing of it gets into the live one
        with torch.no_grad():
            live = model(torch.tensor(two.to_numpy("float32")))[:, 0]
        assert torch.allclose(live, before, atol=1e-5)
        assert not torch.equal(old.run(two), before)
        old.model.load_state_dict(state)
    else:
        changed(model)
    assert torch.equal(old.run(two), before)


# Refused


def compiled_forward():
    net = scorer()
    inner = net[0].forward
    net[0].forward = torch.compile(lambda x: inner(x), backend="eager")
    return net


def closure():
    net = scorer()
    inner = net[0].forward
    net[0].forward = lambda x: 2 * inner(x)
    return net


def hooked():
    net = scorer()
    net[2].register_forward_hook(lambda module, args, out: out + net[0].weight.sum())
    return net


def hooked_before():
    net, weight = scorer(), None
    weight = net[2].weight
    net[2].register_forward_pre_hook(lambda module, args: (args[0] + weight,))
    return net


class WithHelper(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.head = nn.Linear(2, 8), nn.Linear(8, 1)
        read = self.read
        self.helper = lambda x: read(x)

    def forward(self, x):
        return self.head(torch.relu(self.helper(x)))


class ByGlobal(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.head = nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.relu(NET.read(x)))


def by_global():
    global NET
    NET = ByGlobal()
    return NET


class ByClass(ByGlobal):
    first: list = []

    def forward(self, x):
        return self.head(torch.relu(self.first[0].read(x)))


def by_class():
    net = ByClass()
    ByClass.first[:] = [net]
    return net


class ByReference(ByGlobal):
    def __init__(self):
        super().__init__()
        self.whole = weakref.ref(self)  # which is copied as it is

    def forward(self, x):
        return self.head(torch.relu(self.whole().read(x)))


HELD = types.ModuleType("held")


class ByModule(ByGlobal):
    def forward(self, x):
        return self.head(torch.relu(HELD.parts.read(x)))


def by_module():
    HELD.parts = ByModule()
    return HELD.parts


class Parts:
    net: nn.Module


class ByAnotherClass(ByGlobal):
    def forward(self, x):
        return self.head(torch.relu(Parts.net.read(x)))


def by_another_class():
    Parts.net = ByAnotherClass()
    return Parts.net


def by_proxy():
    net = scorer()
    whole = weakref.proxy(net)
    net[2].register_forward_hook(lambda module, args, out: out + whole[0].weight.sum())
    return net


class Same(ByGlobal):
    def forward(self, x):
        return self.head(torch.relu(self.read(x)))

    def __deepcopy__(self, memo):
        return self


class Half(Same):
    def __deepcopy__(self, memo):
        other = type(self)()
        other.read, other.head = self.read, copy.deepcopy(self.head)
        return other


REFUSED = [
    compiled_forward,
    closure,
    hooked,
    hooked_before,
    WithHelper,
    by_global,
    by_class,
    ByReference,
    by_module,
    by_another_class,
    by_proxy,
    Same,
    Half,
]


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_what_computes_with_the_live_weights_is_refused(two, build):
    net = build()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    rng = torch.get_rng_state()
    refused(lambda: released(net, sites=None).run(two), "is a copy")
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert build is Half or torch.equal(torch.get_rng_state(), rng)


def test_a_decision_and_inputs_may_not_be_those_of_the_live_module(two):
    net = scorer()
    by_decision = released(net, decision=lambda out: out[:, 0] + net[0].weight.sum())
    refused(lambda: by_decision.run(two), "is a copy")

    def embedded(rows):
        x = torch.tensor(rows.to_numpy("float32"))
        return (x * net[0].weight.detach().sum(),)

    refused(lambda: released(net, inputs=embedded).run(two), "is a copy")
    harmless = released(net, decision=lambda out: out[:, net[2].out_features - 1])
    assert len(harmless.run(two)) == 60


def test_weights_come_back_to_the_last_bit_whatever_happens():
    net = scorer()
    net.register_buffer("steps", torch.tensor([3, 0]))
    with torch.no_grad():
        net[0].bias[0] = torch.nan
        net[0].bias[1] = -0.0
    before = [t.clone() for t in net.state_dict().values()]
    versions = [p._version for p in net.parameters()]
    with pytest.raises(KeyboardInterrupt), other_weights(net):
        raise KeyboardInterrupt
    for was, now in zip(before, net.state_dict().values(), strict=True):
        assert was.numpy().tobytes() == now.numpy().tobytes()
    assert versions == [p._version for p in net.parameters()]  # a backward pass can go on


# What can't be copied, and what is in a state


class Holds(nn.Module):
    def __init__(self, **held):
        super().__init__()
        self.read, self.head = nn.Linear(2, 8), nn.Linear(8, 1)
        for name, x in held.items():
            setattr(self, name, x)

    def forward(self, x):
        return self.head(torch.relu(self.read(x)))


def test_parts_that_can_not_be_copied_are_named(tmp_path):
    refused(lambda: released(Holds(guard=threading.Lock())), "guard (lock)")
    refused(lambda: released(Holds(later=(i for i in range(2)))), "later (generator)")
    with open(tmp_path / "log", "w") as log:
        refused(lambda: released(Holds(log=log)), "log (TextIOWrapper)")
    inner = Holds(part=Holds(guard=threading.RLock()))
    refused(lambda: released(inner), "part.guard (RLock)")
    refused(lambda: released(nn.Sequential(nn.LazyLinear(8), nn.ReLU())), "0.weight", "lazy")
    refused(lambda: released(torch.jit.script(scorer())), "TorchScript")
    after_backward = Holds()
    after_backward.loss = after_backward.read.weight.sum()
    refused(lambda: released(after_backward), "loss (Tensor)", "before a backward pass")


class Extra(Holds):
    def get_extra_state(self):
        return dict(scale=self.scale, names=["a", "b"])

    def set_extra_state(self, state):
        self.scale = state["scale"]


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_state_is_in_the_fingerprint(two, tmp_path):
    def prints(build, one, two):
        torch.manual_seed(0)
        a = released(build(one)).fingerprint
        torch.manual_seed(0)
        b = released(build(two)).fingerprint
        torch.manual_seed(0)
        assert a == released(build(one)).fingerprint
        return a != b

    def sparse(x):
        net = Holds()
        net.register_buffer("places", (x * torch.eye(2)).to_sparse())
        return net

    def quantized(x):
        net = Holds()
        with torch.no_grad():
            net.read.weight.mul_(x)
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})

    assert prints(lambda x: Extra(scale=x), 1.0, 2.0)
    assert prints(sparse, 1.0, 2.0)
    sites = ["read:out"]
    torch.manual_seed(0)
    first = released(quantized(1.0), sites=sites)
    torch.manual_seed(0)
    second = released(quantized(2.0), sites=sites)
    assert first.fingerprint != second.fingerprint
    assert not torch.equal(first.run(two), second.run(two))
    refused(lambda: released(Extra(scale=object())), "scale", "object")
    live = released(sparse(1.0))
    live.run(two)
    refused(lambda: live.save(tmp_path / "v1", factory=scorer), "places is sparse_coo")


# Adapters


def test_an_adapter_beside_base_weights_is_no_base(tmp_path):
    from importlib.util import find_spec

    saved_llama(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    told = "an adapter without" if find_spec("peft") else "peft is not installed"
    refused(lambda: Release.load(tmp_path, device="cpu"), told, "merge_and_unload")
    (tmp_path / "adapter_config.json").rename(tmp_path / "adapter_model.safetensors")
    refused(lambda: Release.load(tmp_path, device="cpu"), told[:10])


def test_a_tuned_release_has_weights_and_a_fingerprint_of_its_own(tmp_path):
    peft = pytest.importorskip("peft")
    from small_releases import sequences

    model = saved_llama(tmp_path)
    base = Release.load(tmp_path, device="cpu")
    how = dict(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, peft.LoraConfig(**how)).save_pretrained(tmp_path)
    tuned = Release.load(tmp_path, device="cpu")
    rows = base.pin(sequences())
    assert type(tuned.model) is type(base.model)
    assert tuned.fingerprint != base.fingerprint
    assert not torch.equal(tuned.run(rows), base.run(rows))


# Far larger than its weights


@pytest.mark.parametrize(
    "edit",
    [
        dict(architectures=["RagModel"]),
        dict(architectures=["VisionEncoderDecoderModel"]),
        dict(num_hidden_layers=10**6),
        dict(vocab_size=10**9),
        dict(intermediate_size=10**8),
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_a_configuration_of_another_size_is_refused_before_it_is_built(tmp_path, edit):
    import json

    saved_llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | edit))
    refused(lambda: Release.load(tmp_path, device="cpu"), "config.json", "hold 13,6")
