"What levels cost: measured in turns, kept in a file, and asked by a budget."

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import refused
from small_runs import asked_of, by_hand

from interpkit.core.errors import ExitCode
from interpkit.core.files import write_json
from interpkit.core.statistics import clopper_pearson
from interpkit.gate.check_toml import policy_text
from interpkit.gate.cli import run
from interpkit.gate.evidence import verify
from interpkit.gate.parameters import Profile
from interpkit.gate.policy import Policy, Serving, budget_of
from interpkit.gate.profiling import budget_flags
from interpkit.gate.results import question_of, result_of
from interpkit.gate.runner import run_check, run_serving
from interpkit.gate.serving import profile as profile_job
from interpkit.gate.serving import served
from interpkit.serve import paired_times
from interpkit.serve.arms import bare, hooks_on
from interpkit.serve.costs import Cost, Costs, budget_in, choice_or_off
from interpkit.serve.levels import LEVELS, Budget
from interpkit.serve.monitored import monitored
from interpkit.serve.paired_times import Arm, interleaved, mean_difference, tail_difference
from interpkit.serve.profile import profile
from interpkit.serve.rungs import Seen, difference_of, expected_of, reads_of

SMALL = dict(features=[4], calls=100, seconds=3)
FREE = dict(added_latency_pct=float("inf"), cpu_pct_mean=float("inf"))


# What fits a budget


def cost(level="monitor-last", batch=1, **known) -> Cost:
    sound = dict(deferred=level == "monitor-last", features=128, coverage=0.6, calls=3000)
    sound |= dict(bare_p99_us=1000.0, added_us=4.0, added_p99_us=5.0, cpu_pct=0.5)
    return Cost(level, batch, 32, **sound | known)


def costs(*rows: Cost, device="cpu (x86_64)") -> Costs:
    return Costs(rows, dict(device=device, flops=1e11, bytes=1e10), dict(name="v1"), every=32)


@pytest.mark.parametrize(
    "known, budget, fits",
    [
        ({}, Budget(), True),
        (dict(added_p99_us=11.0), Budget(), False),  # 1.1 % of 1,000 us
        (dict(added_p99_us=11.0), Budget(added_latency_pct=None), True),
        (dict(added_p99_us=None), Budget(), False),  # nobody knows
        (dict(bare_p99_us=None), Budget(), False),
        (dict(added_p99_us=None), Budget(added_latency_pct=None), True),
        (dict(cpu_pct=1.01), Budget(), False),
        (dict(cpu_pct=None), Budget(), False),
        (dict(cpu_pct=-0.3), Budget(cpu_pct_mean=0.0), True),
        ({}, Budget(added_latency_p99_us=4.9), False),
        ({}, Budget(min_coverage=0.61), False),
        ({}, Budget(gpu_mem_mb=0.0), True),  # binds nothing on a CPU
    ],
)
def test_a_level_fits_where_all_that_the_budget_bounds_was_measured_and_is_under_it(
    known, budget, fits
):
    assert costs(cost(**known)).fits(budget) == (["monitor-last"] if fits else [])


def test_gpu_memory_is_bounded_where_there_is_a_gpu():
    used = costs(cost(peak_mb=3.0), device="cuda (H200)")
    assert used.fits(Budget(gpu_mem_mb=3.0)) == ["monitor-last"]
    assert used.fits(Budget(gpu_mem_mb=2.0)) == []
    assert costs(cost(), device="cuda (H200)").fits(Budget(gpu_mem_mb=9.0)) == []


def test_a_level_has_to_fit_at_every_size_that_was_measured():
    both = costs(cost(), cost(batch=8, cpu_pct=2.0))
    assert both.fits(Budget()) == []
    assert both.fits(Budget(), batch=1) == ["monitor-last"]
    refused(lambda: both.fits(Budget(), batch=4), "1, 8", code=ExitCode.BAD_PARAMETERS)


def test_the_highest_level_is_chosen_then_what_watches_most_then_the_cheapest():
    few, many = cost(), cost(features=512, coverage=0.8)
    now = replace(many, deferred=False, cpu_pct=0.4)
    assert costs(few, many).choose(Budget()).features == 512
    assert costs(many, now).choose(Budget()).deferred is False
    assert costs(many, now, cost("monitor")).choose(Budget()).level == "monitor"
    assert costs(many, cost("monitor", cpu_pct=5.0)).choose(Budget()).level == "monitor-last"


def test_where_nothing_fits_the_error_names_the_cheapest_its_cost_and_the_bound():
    dear = costs(cost(cpu_pct=2.5), cost("monitor", cpu_pct=7.0), cost("off", cpu_pct=0.9))
    error = refused(lambda: dear.choose(Budget()), code=ExitCode.BAD_PARAMETERS)
    assert "monitor-last, deferred with 128 features, adds 4 us and 2.5 %" in error.given
    assert "the budget allows 1 %" in error.given
    assert choice_or_off(dear, Budget()).note == error.given
    refused(lambda: costs(cost("off")).choose(Budget()), code=ExitCode.BAD_PARAMETERS)


def test_an_interval_that_reaches_over_a_bound_is_told_and_forbids_nothing():
    wide = costs(cost(added_p99_us_upper=30.0, cpu_pct_upper=0.6))
    assert "up to 3 % of latency" in wide.choose(Budget()).note
    assert costs(cost(added_p99_us_upper=9.0)).choose(Budget()).note == ""


# The file


def test_what_is_written_is_read_and_what_is_foreign_is_refused(tmp_path):
    kept = costs(cost(), cost("no-op", coverage=0.0))
    file = kept.save(tmp_path / "budget.json", Budget(min_coverage=0.9))
    assert Costs.load(file) == kept
    assert budget_in(file) == Budget(min_coverage=0.9)
    told = json.loads(file.read_text())
    assert told["chosen"]["level"] == "off"
    assert "coverage 0.60" in told["chosen"]["note"]
    row = told["rows"][0]
    for other in (dict(level="all"), dict(batch="1"), dict(cpu_pct="x"), dict(p99_us=True)):
        file.write_text(json.dumps(told | dict(rows=[row | other])))
        refused(lambda: Costs.load(file))
    for text in ("[]", "{}", '{"format": 2}', "NaN"):
        file.write_text(text)
        refused(lambda: Costs.load(file))


# Arms in turns


class Clock:
    "Time that passes only where somebody says so."

    def __init__(self, monkeypatch):
        self.wall, self.cpu = 0, 0
        monkeypatch.setattr(paired_times.time, "perf_counter_ns", lambda: self.wall)
        monkeypatch.setattr(paired_times.time, "process_time_ns", lambda: self.cpu)

    def passes(self, us: float):
        self.wall += int(1000 * us)
        self.cpu += int(1000 * us)


def test_what_is_put_off_counts_as_cpu_time_of_its_arm_and_not_as_latency(monkeypatch):
    clock, seen, waiting = Clock(monkeypatch), [], []

    def call(i):
        seen.append(i)
        clock.passes(100)
        waiting.append(i)

    def settle():
        clock.passes(7 * len(waiting))
        waiting.clear()

    later = Arm("later", settle=settle)
    times = interleaved(call, [Arm("bare", settle=waiting.clear), later], calls=40, block=10)
    assert times["bare"].wall.tolist() == times["later"].wall.tolist() == [[100.0] * 10] * 4
    assert times["bare"].cpu.tolist() == [100.0] * 4
    assert times["later"].cpu.tolist() == [107.0] * 4  # warm calls are settled before the clock
    counted = sorted(seen)
    assert counted.count(25) == 2  # every request once in each arm
    assert mean_difference(times["bare"].cpu, times["later"].cpu, relative=True)[0] == 7


def test_arms_follow_each_other_in_another_order_each_round():
    order = []

    def arm(name):
        return Arm(name, lambda: (order.append(name), nullcontext())[1])

    interleaved(lambda i: None, [arm(n) for n in "abc"], calls=80, block=5)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 2


def test_no_plan_without_a_spread():
    refused(lambda: interleaved(int, [Arm("bare")], calls=30, block=10), code=64)


def test_intervals_hold_what_is_added():
    "Nominally 95 %; blocks share a weather, calls have heavy tails."
    rng, worlds, held = np.random.default_rng(0), 80, np.zeros(2, int)
    for _ in range(worlds):
        weather = rng.gamma(9, 2, (40, 1))
        was = weather + 3 * rng.exponential(size=(40, 15)) ** 2
        now = weather + 3 * rng.exponential(size=(40, 15)) ** 2 + 4
        for k, (_, lower, upper) in enumerate(
            (mean_difference(was, now), tail_difference(was, now, 90))
        ):
            held[k] += lower <= 4 <= upper
    for k in held:
        assert clopper_pearson(int(k), worlds)[1] >= 0.95
        assert clopper_pearson(int(k), worlds)[0] >= 0.8


# A model


def test_hooks_come_back_as_they_were_also_after_an_error(tiny):
    model, calls = tiny.old.model, []
    handle = model[1].register_forward_hook(lambda *_: calls.append(1))
    x = torch.zeros(1, 6)
    with pytest.raises(KeyError), bare(model):
        model(x)
        assert calls == []
        raise KeyError
    model(x)
    own = hooks_on(model)
    ours = model[0].register_forward_hook(lambda *_: calls.append(2))
    with bare(model, own):
        model(x)  # theirs stays
    ours.remove(), handle.remove()
    model(x)
    assert calls == [1, 1]
    assert hooks_on(model) == {}


def test_every_level_is_measured_and_what_was_not_is_empty(tiny, tmp_path):
    how = dict(features=(4, 99), batches=(2,), calls=100, seconds=5, jax=False)
    found = profile(tiny.old, tiny.dictionary, tiny.rows, **how, trace=tmp_path / "trace.json")
    table = found.table()
    assert set(table["level"]) == {"no-op", *LEVELS}
    assert set(table.query("level == 'monitor'")["features"]) == {4, 16}
    assert table["calls"].eq(100).all()
    assert table[["p99_us", "added_p99_us", "peak_mb", "kernels", "jax_us"]].isna().all(None)
    assert (table["added_us_lower"] <= table["added_us_upper"]).all()
    reads = table[table["features"] > 0]
    assert (reads["difference"] < 1e-5).all()
    assert (reads["flops_counted"] >= reads["flops"]).all()
    assert found.release["fingerprint"] == tiny.old.fingerprint
    assert found.trace == "trace.json"
    assert "interpkit: monitor" in (tmp_path / "trace.json").read_text()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.old.model.modules())
    assert found.choose(Budget(added_latency_pct=None, cpu_pct_mean=None)).level == "full"
    refused(lambda: found.choose(Budget()), "not measured", code=64)  # of a hundred calls


def test_odd_questions_are_refused_before_anything_is_measured(tiny):
    about = (tiny.old, tiny.dictionary, tiny.rows)
    for wrong in (
        dict(levels=("al",)),
        dict(features=()),
        dict(batches=(0,)),
        dict(batches=(10**6,)),
        dict(calls=10),
    ):
        refused(lambda wrong=wrong: profile(*about, **wrong), code=64)
    bare_dictionary = replace(tiny.dictionary, validity={}, canary={})
    refused(lambda: profile(tiny.old, bare_dictionary, tiny.rows, calls=100))


def test_a_reader_with_other_weights_is_told_from_the_dictionary(tiny, monkeypatch):
    chosen = monitored(tiny.old, tiny.dictionary, tiny.rows, n=8)
    acts = tiny.old.model[:2](torch.as_tensor(tiny.rows.filter(like="x").to_numpy()[:9].copy()))
    every = torch.ones(9, 1, dtype=torch.bool)
    seen = Seen({tiny.dictionary.sites[0]: acts[:, None]}, every, torch.zeros(9, dtype=torch.long))
    reads = reads_of(tiny.dictionary, chosen, LEVELS[1:], "1:out")
    assert all(difference_of(read, tiny.dictionary, seen)[0] < 1e-5 for read in reads)
    weights = tuple(replace(w, W_enc=1.01 * w.W_enc) for w in tiny.dictionary.weights)
    moved = expected_of(reads[0], replace(tiny.dictionary, weights=weights), seen)
    monkeypatch.setattr("interpkit.serve.rungs.expected_of", lambda *about: moved)
    assert difference_of(reads[0], tiny.dictionary, seen)[0] > 0.005


# The policy


def test_a_policy_without_serving_is_written_as_before(tmp_path):
    assert "serve" not in Policy().model_dump(mode="json")
    assert Policy.read(Policy().model_dump(mode="json")).serve is None
    assert Policy.read(dict(serve={})).serve == Serving()
    assert budget_of(Serving()) == Budget()


def test_serving_survives_toml_and_json(tmp_path):
    asked = dict(cpu_pct_mean=float("inf"), added_latency_p99_us=30.0, features=[32, 128])
    policy = Policy.read(dict(serve=asked))
    about = ("release", "data", "decision", "sites", "segments", "rare", "alerts")
    (tmp_path / "p.toml").write_text(policy_text(policy, dict.fromkeys(about, "-")))
    (tmp_path / "p.json").write_text(json.dumps(policy.model_dump(mode="json")))
    assert Policy.read(tmp_path / "p.toml") == Policy.read(tmp_path / "p.json") == policy
    assert policy.serve.cpu_pct_mean is None


def test_the_commented_section_means_the_defaults_when_it_is_uncommented(tmp_path):
    about = ("release", "data", "decision", "sites", "segments", "rare", "alerts")
    text = policy_text(Policy(), dict.fromkeys(about, "-"))
    head, commented = text.split("# [serve]")
    lines = ("# [serve]" + commented).splitlines()
    (tmp_path / "p.toml").write_text(head + "\n".join(line.removeprefix("# ") for line in lines))
    assert Policy.read(tmp_path / "p.toml").serve == Serving()


@pytest.mark.parametrize(
    "given, meant",
    [
        (dict(featurs=[1]), "'features'"),
        (dict(features=[0]), "correct"),
        (dict(cpu_pct_mean=-1.0), "correct"),
        (dict(cpu_pct_mean=float("nan")), "correct"),
        (dict(on_exhaust="fail"), "correct"),
        (dict(calls=10), "correct"),
    ],
)
def test_a_section_on_serving_that_bounds_nothing_is_refused(given, meant):
    error = refused(lambda: Policy.read(dict(serve=given)), code=ExitCode.BAD_PARAMETERS)
    assert meant in error.mend


def test_a_budget_on_a_command_line_is_named_part_by_part():
    assert budget_flags(["cpu_pct_mean=2"]) == dict(serve__cpu_pct_mean=2.0)
    for wrong in ("cpu_pct=2", "cpu_pct_mean", "=3"):
        refused(lambda wrong=wrong: budget_flags([wrong]), code=64)
    policy = Policy.read(None, **budget_flags(["on_exhaust=fail closed", "min_coverage=0.5"]))
    assert budget_of(policy.serve).on_exhaust == "fail closed"


# In a run


@pytest.fixture(scope="module")
def held(tiny, tmp_path_factory):
    "A run whose check of a release next to v1 ends with REUSE, with [serve] in its policy."
    from conftest import COLUMNS

    from interpkit.model.releases import Release

    at = tmp_path_factory.mktemp("held")
    import tiny_fraud

    near = tiny_fraud.build()
    near.load_state_dict(tiny.old.model.state_dict())
    with torch.no_grad():
        near[0].weight *= 1.0001
    columns = dict(kind="columns", columns=COLUMNS)
    how = dict(inputs=columns, decision=dict(kind="scalar"), sites=["1:out"], name="near")
    Release.from_module(near, **how).save(at / "near", factory=tiny_fraud.build)
    policy = Policy.read(dict(serve=SMALL | FREE))
    (at / "policy.json").write_text(json.dumps(policy.model_dump(mode="json")))
    p = asked_of(tiny, str(at / "near"), at / "run", policy=str(at / "policy.json"))
    assert by_hand(p)["action"] == "REUSE"
    return p, policy


def test_a_release_whose_check_held_is_profiled_with_a_dictionary_certified_for_it(held):
    p, _ = held
    found = served(Profile(run=p.run))
    assert found.release.name == "near"
    assert found.release.is_that_of(found.dictionary.validity)
    assert found.evidence == result_of(p.run, "report")["evidence"]
    again = served(Profile(run=p.run))
    assert again.dictionary.validity == found.dictionary.validity


def test_a_run_whose_check_did_not_hold_is_not_served(tmp_path):
    refused(lambda: profile_job(Profile(run=str(tmp_path))), "no report")
    (tmp_path / "report").mkdir()
    write_json(tmp_path / "report" / "result.json", dict(verdict="FAIL", action="REVIEW"))
    refused(lambda: profile_job(Profile(run=str(tmp_path))), "REVIEW")
    assert not (tmp_path / "budget.json").exists()
    refused(lambda: served(Profile(run="r", release="v1")), "no dictionary and no data", code=64)


def test_a_check_with_serving_is_followed_by_a_profile_and_verifies(held, capsys):
    p, policy = held
    told = []
    report = run_check(p, policy, told=lambda job, result: told.append(job))
    assert told[-2:] == ["profile", "calibrate"] and report["verdict"] == "PASS"
    found = result_of(p.run, "profile")
    assert found["level"] == "full" and found["evidence"] == report["evidence"]
    assert Costs.load(f"{p.run}/budget.json").choose(budget_of(policy.serve)).level == "full"
    assert "serve" in question_of(p.run)["policy"]
    assert verify(p.run).verdict.outcome == "PASS"
    told.clear()
    run_check(p, policy, told=lambda job, result: told.append((job, result["seconds"])))
    assert ("profile", found["seconds"]) in told  # kept


def test_a_profile_that_fails_is_told_and_changes_no_verdict(held, tmp_path, capsys):
    p, _ = held
    run_serving(tmp_path / "none", dict(action="REUSE", evidence="x"), folder=tmp_path)
    assert "the verdict stands" in capsys.readouterr().err
    assert verify(p.run).verdict.outcome == "PASS"


def test_a_check_that_does_not_hold_says_why_no_costs_are_measured(tmp_path, capsys):
    run_serving(tmp_path / "none", dict(action="ADAPT + REVIEW", evidence="x"), folder=tmp_path)
    assert "ADAPT + REVIEW: what serving costs" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_bound_that_nobody_asked_for_is_named_with_what_lifts_it():
    rows = (cost(cpu_pct=1.0, added_p99_us=9000.0, bare_p99_us=100.0),)
    error = refused(
        lambda: Costs(rows).choose(Budget(cpu_pct_mean=2.0)), code=ExitCode.BAD_PARAMETERS
    )
    assert "9,000 %, and the budget allows 1 % (added_latency_pct)" in error.given
    assert "inf" in error.mend
    assert Costs(rows).choose(Budget(cpu_pct_mean=2.0, added_latency_pct=None))
    infinite = dict(added_latency_pct=float("inf"))
    error = refused(lambda: Budget(**infinite), code=ExitCode.BAD_PARAMETERS)
    assert "added_latency_pct=None" in error.mend


def test_the_command_prints_a_table_and_writes_the_file(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("interpkit.serve.rungs.find_spec", lambda name: None)  # no JAX here
    out = str(tmp_path / "budget.json")
    places = ["--release", tiny.v1, "--dictionary", tiny.dictionary_folder, "--data", tiny.data]
    small = ["--features", "4", "--calls", "100", "--out", out]
    free = ["--budget", "cpu_pct_mean=inf", "--budget", "added_latency_pct=inf"]
    assert run(["profile", *places, *small, *free]) == 0
    printed = capsys.readouterr().out
    assert "Within the budget: full at 1:out with 16 features" in printed
    assert {c.level for c in Costs.load(out).rows} == {"no-op", *LEVELS}
    assert run(["profile", *places, *small, "--budget", "cpu=1"]) == 64
    assert run(["profile", *places, "--out", str(tmp_path / "no" / "budget.json")]) == 64
