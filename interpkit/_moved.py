"""Where modules and names of version 0.1 are now.

Who imports one that has moved gets an ImportError that tells its new home. Both tables hold lines
`old -> new`, without `interpkit.` before them. They stay for one version.
"""

import sys
from dis import opmap
from importlib.machinery import PathFinder
from types import FrameType

MODULES = """
dictionary.sparse -> dictionary.dictionary
dictionary.codes -> sparse.codes
dictionary.kernels -> sparse.products
dictionary.triton_kernels -> sparse.triton_kernels
dictionary.sparse_training -> training.trainer
dictionary.fit -> training.fit
dictionary.finish -> training.finish
dictionary.train -> training.train
dictionary.interop -> bridges.saelens
dictionary.circuit_tracer -> bridges.circuit_tracer
dictionary.in_jax -> bridges.jax
drift.contract -> drift.statements
model.folders -> model.weights
release -> gate
release.check -> gate.check
release.cli -> gate.cli
release.demo -> gate.demo
release.evidence -> gate.evidence
release.jobs -> gate.jobs
release.parameters -> gate.parameters
release.policy -> gate.policy
release.progress -> gate.progress
release.report -> gate.report
release.runner -> gate.runner
"""

# names that left a module which is still there; a method is written Class.method
NAMES = """
bridges.circuit_tracer:from_circuit_tracer -> bridges.from_circuit_tracer:from_circuit_tracer
bridges.saelens:READS -> bridges.from_saelens:READS
bridges.saelens:TRAIN -> bridges.from_saelens:TRAIN
bridges.saelens:from_saelens -> bridges.from_saelens:from_saelens
core.artefacts:FULL -> core.files:FULL
core.artefacts:LOCKED -> core.files:LOCKED
core.artefacts:aside_name -> core.files:aside_name
core.artefacts:canonical -> core.digests:canonical
core.artefacts:digest_file -> core.digests:digest_file
core.artefacts:digest_frame -> core.digests:digest_frame
core.artefacts:digest_json -> core.digests:digest_json
core.artefacts:is_storage_error -> core.files:is_storage_error
core.artefacts:read_json -> core.files:read_json
core.artefacts:remove_leftovers -> core.files:remove_leftovers
core.artefacts:six -> core.digests:six
core.artefacts:storage_error -> core.files:storage_error
core.artefacts:write_json -> core.files:write_json
data.ledger:BASE -> data.world:BASE
data.ledger:BOS -> data.world:BOS
data.ledger:DECIDE -> data.world:DECIDE
data.ledger:FACTORS -> data.world:FACTORS
data.ledger:FIELDS -> data.world:FIELDS
data.ledger:FIRST -> data.world:FIRST
data.ledger:FRAUD -> data.world:FRAUD
data.ledger:Factor -> data.world:Factor
data.ledger:LEGIT -> data.world:LEGIT
data.ledger:PAD -> data.world:PAD
data.ledger:RULE -> data.world:RULE
data.ledger:SPECIAL -> data.world:SPECIAL
data.ledger:TOKEN -> data.world:TOKEN
data.ledger:TOKENS_PER_EVENT -> data.world:TOKENS_PER_EVENT
data.ledger:VOCAB -> data.world:VOCAB
data.ledger:World -> data.world:World
data.ledger:causes -> data.world:causes
data.ledger:features -> data.ledger:Quarter.features
data.store:DTYPES -> data.shards:DTYPES
data.store:KIND -> data.shards:KIND
data.store:WORDS -> data.shards:WORDS
data.store:batches -> data.store:ActivationStore.batches
data.store:batches_at -> data.store:ActivationStore.batches_at
data.store:d -> data.store:ActivationStore.d
data.store:read -> data.store:ActivationStore.read
data.store:tokens -> data.store:ActivationStore.tokens
data.stream:batches -> data.stream:ActivationStream.batches
data.stream:batches_at -> data.stream:ActivationStream.batches_at
dictionary.checks:Check -> dictionary.questions:Check
dictionary.dictionary:AGAIN -> dictionary.folders:AGAIN
dictionary.dictionary:DTYPES -> dictionary.arguments:DTYPES
dictionary.dictionary:Dictionary.to_jax -> bridges.jax:to_jax
dictionary.dictionary:HEAD -> dictionary.folders:HEAD
dictionary.dictionary:SiteWeights -> dictionary.weights:SiteWeights
dictionary.dictionary:TENSORS -> dictionary.weights:TENSORS
dictionary.dictionary:WIRINGS -> dictionary.wirings:WIRINGS
dictionary.dictionary:load -> dictionary.dictionary:Dictionary.load
dictionary.dictionary:save -> dictionary.dictionary:Dictionary.save
dictionary.dictionary:unit_rows -> dictionary.weights:unit_rows
dictionary.evaluate:batch_size -> dictionary.replacement:batch_size
dictionary.evaluate:codes_at -> dictionary.replacement:codes_at
dictionary.evaluate:counted -> model.batch:counted
dictionary.evaluate:in_batches -> dictionary.replacement:in_batches
dictionary.evaluate:refuse_late -> dictionary.live:refuse_late
dictionary.evaluate:replaced_output -> dictionary.replacement:replaced_output
dictionary.evaluate:run_replaced -> dictionary.replacement:run_replaced
dictionary.evaluate:splice -> dictionary.replacement:splice
dictionary.evaluate:splice_error -> dictionary.replacement:splice_error
dictionary.evaluate:spliced_decisions -> dictionary.replacement:spliced_decisions
dictionary.metrics:READERS -> dictionary.tasks:READERS
dictionary.metrics:WORDS -> dictionary.metrics:RUNS
dictionary.metrics:mean_activations -> dictionary.means:mean_activations
dictionary.metrics:run_held -> dictionary.means:run_held
dictionary.metrics:skip_alone -> dictionary.means:skip_alone
dictionary.metrics:weights_of -> core.groups:weights_of
drift.families:FAMILIES -> drift.measure:FAMILIES
drift.families:load_families -> drift.measure:load_families
drift.families:measure -> drift.measure:measure
drift.families:measure_all -> drift.measure:measure_all
drift.families:statement_names -> drift.measure:statement_names
drift.families:wholly_changed -> drift.measure:wholly_changed
drift.families:with_segments -> drift.measure:with_segments
drift.figures:COLOURS -> core.show:COLOURS
drift.figures:INK -> drift.canvas:INK
drift.figures:PALE -> drift.canvas:PALE
drift.figures:SHAPES -> drift.canvas:SHAPES
drift.figures:STYLE -> drift.canvas:STYLE
drift.printed:auc -> drift.behaviour:auc
drift.printed:behaviour -> drift.behaviour:behaviour
drift.printed:release_decisions -> drift.comparison:release_decisions
drift.statements:ALL -> drift.segments:ALL
drift.statements:segments_of -> drift.segments:segments_of
drift.verdict:Limits -> drift.limits:Limits
drift.verdict:action_for -> drift.actions:action_for
drift.verdict:OldScores -> drift.scores:OldScores
drift.verdict:code_digest -> drift.plan:code_digest
drift.verdict:fit_or_raise -> drift.scores:fit_or_raise
drift.verdict:plan_check -> drift.plan:plan_check
drift.verdict:preview -> drift.plan:preview
drift.verdict:score_old -> drift.scores:score_old
drift.verdict:watched_features -> drift.scores:watched_features
drift.words:COMMAND -> drift.page:COMMAND
drift.words:LEAD -> drift.page:LEAD
drift.words:Part -> drift.page:Part
drift.words:VERBS -> drift.answers:VERBS
drift.words:basis -> drift.page:basis
drift.words:behaviour_words -> drift.caveats:behaviour_words
drift.words:error_rate_words -> drift.caveats:error_rate_words
drift.words:next_words -> drift.page:next_words
drift.words:not_tested -> drift.caveats:not_tested
drift.words:page_one -> drift.page:page_one
drift.words:same_words -> drift.answers:same_words
drift.words:segments -> drift.parts:segment_words
drift.words:sensitivity_rows -> drift.caveats:sensitivity_rows
drift.words:sensitivity_words -> drift.caveats:sensitivity_words
drift.words:short_html -> drift.page:short_html
drift.words:summary_lines -> drift.page:summary_lines
drift.words:unreadable -> drift.answers:unreadable
drift.words:valid_words -> drift.answers:valid_words
drift.words:watched_words -> drift.answers:watched_words
gate.check:forecast -> gate.forecast:forecast
gate.cli:clash -> gate.doctor:clash
gate.cli:findings -> gate.doctor:findings
gate.demo:COLOUR -> core.show:COLOURS
gate.demo:COLUMNS_AT -> gate.demo_table:COLUMNS_AT
gate.demo:HEADS -> gate.demo_table:HEADS
gate.demo:MARK -> core.show:MARKS
gate.demo:table_svg -> gate.demo_table:table_svg
gate.demo:table_text -> gate.demo_table:table_text
gate.evidence:derive -> gate.derived:derive
gate.evidence:examples_of -> gate.derived:examples_of
gate.jobs:KEPT -> gate.results:KEPT
gate.jobs:Page -> gate.results:Page
gate.jobs:asked -> gate.results:asked
gate.jobs:begin -> gate.results:begin
gate.jobs:differences -> gate.results:differences
gate.jobs:digest_of -> gate.results:digest_of
gate.jobs:finish -> gate.results:finish
gate.jobs:plan_table -> gate.results:plan_table
gate.jobs:raise_unless_passed -> gate.results:raise_unless_passed
gate.jobs:recorded -> gate.results:recorded
gate.jobs:result_of -> gate.results:result_of
gate.parameters:Limit -> gate.policy:Limit
gate.parameters:LimitsOf -> gate.policy:LimitsOf
gate.parameters:Own -> gate.policy:Own
gate.parameters:Policy -> gate.policy:Policy
gate.parameters:Training -> gate.policy:Training
gate.policy:WHY -> gate.check_toml:WHY
gate.policy:init_policy -> gate.check_toml:init_policy
gate.policy:measured_own -> gate.check_toml:measured_own
gate.policy:policy_text -> gate.check_toml:policy_text
gate.policy:toml -> gate.check_toml:toml
gate.report:CSS -> gate.page_style:CSS
gate.report:MARKS -> core.show:MARKS
gate.report:WORDS -> gate.numbers:WORDS
gate.report:behaviour_rows -> gate.numbers:behaviour_rows
gate.report:changed_rows -> gate.numbers:changed_rows
gate.report:example_rows -> gate.numbers:example_rows
gate.report:plan_rows -> gate.numbers:plan_rows
gate.report:site_rows -> gate.numbers:site_rows
gate.report:statement_rows -> gate.numbers:statement_rows
gate.runner:ENDS -> gate.notebooks:ENDS
gate.runner:Line -> gate.kernel:Line
gate.runner:job_notebook -> gate.notebooks:job_notebook
gate.runner:jobs_folder -> gate.notebooks:jobs_folder
gate.runner:own_kernel -> gate.kernel:own_kernel
gate.runner:refuse_exits -> gate.notebooks:refuse_exits
model.fingerprints:SHARED -> model.synthetic:SHARED
model.fingerprints:canary -> model.canaries:canary
model.fingerprints:canary_rows -> model.canaries:canary_rows
model.fingerprints:compare_canary -> model.canaries:compare_canary
model.folders:AGAIN -> model.weights:AGAIN
model.folders:Code -> model.code:Code
model.folders:PICKLES -> model.weights:PICKLES
model.folders:SCHEMA -> model.fingerprints:SCHEMA
model.folders:copy_code -> model.code:copy_code
model.folders:fill -> model.weights:fill
model.folders:hf_model -> model.hub_folders:hf_model
model.folders:hub_folder -> model.hub_folders:hub_folder
model.folders:own_modules -> model.code:own_modules
model.folders:path_of -> model.code:path_of
model.folders:read_weights -> model.weights:read_weights
model.folders:schema_digests -> model.fingerprints:schema_digests
model.folders:weight_files -> model.weights:weight_files
model.releases:ACTIVATIONS -> model.sites:ACTIVATIONS
model.releases:SAID -> model.hub_folders:SAID
model.releases:blocks -> model.sites:blocks
model.releases:pick_device -> model.frozen:pick_device
model.releases:pin -> model.releases:Release.pin
model.releases:save -> model.releases:Release.save
model.releases:sites -> model.releases:Release.sites
model.releases:suggest_sites -> model.sites:suggest_sites
model.sites:BLOCKS -> model.block_kinds:BLOCKS
model.sites:Batch -> model.batch:Batch
model.sites:BlockKind -> model.block_kinds:BlockKind
model.sites:GPT2 -> model.block_kinds:BLOCKS
model.sites:LLAMA -> model.block_kinds:BLOCKS
model.sites:OTHER -> model.hooks:OTHER
model.sites:PLAIN -> model.block_kinds:PLAIN
model.sites:POST -> model.block_kinds:BLOCKS
model.sites:capture -> model.capture:capture
model.sites:grad_at_sites -> model.gradients:grad_at_sites
model.sites:hook_name_from_site -> model.hook_names:hook_name_from_site
model.sites:hooked -> model.hooks:hooked
model.sites:mlp_sites -> model.block_kinds:mlp_sites
model.sites:pick -> model.batch:pick
model.sites:run_spliced -> model.capture:run_spliced
model.sites:site_from_hook_name -> model.hook_names:site_from_hook_name
sparse.codes:AT_ONCE -> sparse.encoders:AT_ONCE
sparse.codes:Encoder -> sparse.encoders:Encoder
sparse.codes:LARGE -> sparse.encoders:LARGE
sparse.codes:MOST -> sparse.encoders:MOST
sparse.codes:ON_GPU -> sparse.encoders:ON_GPU
sparse.codes:ROOM -> sparse.encoders:ROOM
sparse.codes:ScreenedEncoder -> sparse.encoders:ScreenedEncoder
sparse.codes:UP -> sparse.encoders:UP
sparse.codes:bits -> sparse.encoders:bits
sparse.codes:check_acts -> sparse.encoders:check_acts
sparse.codes:check_weights -> sparse.encoders:check_weights
sparse.codes:collect -> sparse.encoders:collect
sparse.codes:encode -> sparse.encoders:encode
sparse.codes:encoder_for -> sparse.encoders:encoder_for
sparse.codes:margins -> sparse.encoders:error_bounds
sparse.codes:pack -> sparse.encoders:pack
sparse.codes:packed_product -> sparse.encoders:packed_product
sparse.codes:subset -> sparse.codes:SparseCodes.subset
training.finish:task_loss -> training.task_loss:task_loss
training.fit:COUNTS -> training.checkpoint:COUNTS
training.fit:SETTLED -> training.complaints:SETTLED
training.fit:Watch -> training.watch:Watch
training.fit:check_fold -> training.complaints:check_fold
training.fit:complaints -> training.complaints:complaints
training.fit:curves -> training.watch:curves
training.fit:go_on -> training.checkpoint:go_on
training.fit:keep -> training.checkpoint:keep
training.fit:line -> training.watch:line
training.fit:made_by -> training.checkpoint:made_by
training.fit:peak_memory -> training.watch:peak_memory
training.fit:status -> training.watch:status
training.train:QUIET -> training.preflight:QUIET
training.train:wired -> training.pairing:wired
training.trainer:BANDWIDTH -> training.objectives:BANDWIDTH
training.trainer:FAR -> training.start:FAR
training.trainer:OBJECTIVES -> training.recipe:OBJECTIVES
training.trainer:PULL -> training.objectives:PULL
training.trainer:PUSH -> training.objectives:PUSH
training.trainer:Parameters -> training.gradients:Parameters
training.trainer:Recipe -> training.recipe:Recipe
training.trainer:Scale -> training.start:Scale
training.trainer:Shape -> training.gradients:Shape
training.trainer:cut_for -> training.start:threshold_for_
training.trainer:first_parameters -> training.start:first_parameters
training.trainer:gradients -> training.gradients:gradients
training.trainer:recipe -> training.recipe:recipe
training.trainer:record -> training.trainer:Trainer.record
training.trainer:unit -> training.start:unit_
training.trainer:weights -> training.trainer:Trainer.weights
"""


def moves(table: str) -> dict[str, str]:
    "A table as old -> new, in full."
    pairs = [line.split(" -> ") for line in table.strip().splitlines()]
    return {f"interpkit.{old}": f"interpkit.{new}" for old, new in pairs}


def names_by_module(table: str) -> dict[str, dict[str, str]]:
    "A table of names as module -> name -> what to write now."
    modules: dict[str, dict[str, str]] = {}
    for old, new in moves(table).items():
        module, name = old.split(":")
        place, now = new.split(":")
        told = f"it is {place}.{now} now" if "." in now else f"from {place} import {now}"
        modules.setdefault(module, {})[name] = told
    return modules


class OldModules:
    "The finder that is asked last: a module that nobody else found may have moved."

    def __init__(self, table: str = MODULES):
        self.moved = moves(table)

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname in self.moved:
            elsewhere = names_by_module(NAMES).get(fullname, {})
            told = [f"{fullname} has moved: it is {self.moved[fullname]} now", *elsewhere.values()]
            raise ImportError("; ".join(told), name=fullname)


class OldNames:
    "The finder that is asked first: a module whose names have moved learns to tell where to."

    def __init__(self, table: str = NAMES):
        self.moved = names_by_module(table)

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname not in self.moved:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _teach(spec.loader, self.moved[fullname])
        return spec


class _OldMethod:
    "Stands in a class for a method that has moved."

    def __init__(self, told: str):
        self.told = told

    def __get__(self, instance, owner=None):
        raise AttributeError(self.told)


def _is_import(frame: FrameType) -> bool:
    "Whether a frame is at `from module import name`, which asks a module for an attribute as well."
    return frame.f_code.co_code[frame.f_lasti] == opmap["IMPORT_FROM"]


def _teach(loader, names: dict[str, str]):
    "Let a module, once it is loaded, answer for the names that have left it."
    execute = loader.exec_module

    def exec_module(module):
        execute(module)
        told = {n: f"{module.__name__}.{n} has moved: {now}" for n, now in names.items()}

        def __getattr__(name: str):
            if name not in told:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            if _is_import(sys._getframe(1)):
                raise ImportError(told[name], name=module.__name__)
            raise AttributeError(told[name])  # hasattr, pickle and mocks ask for attributes

        for name in set(told) & set(vars(module)):
            if vars(module)[name] is None:  # what is left of a function that became a method
                delattr(module, name)
        module.__getattr__ = __getattr__
        for method in (n for n in names if "." in n):
            owner, _, name = method.partition(".")
            if not hasattr(getattr(module, owner), name):
                setattr(getattr(module, owner), name, _OldMethod(told[method]))

    loader.exec_module = exec_module


sys.meta_path.insert(0, OldNames())  # type: ignore[arg-type]
sys.meta_path.append(OldModules())  # type: ignore[arg-type]
