#!/usr/bin/env bash
# What `make test` and `make quick` run. Ends with the first failure.
#   all    export and clean change nothing, every notebook but those of jobs runs, pytest passes (with the built wheel in a venv of its own)
#   quick  export, then the notebooks and tests that differ from the last commit
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false PYTHONWARNINGS="${PYTHONWARNINGS:-ignore::DeprecationWarning}"
nvidia-smi > /dev/null 2>&1 || export TRITON_INTERPRET="${TRITON_INTERPRET:-1}"  # Triton reads it once, when a process imports it, and notebooks share processes
mode="${1:-all}" workers="${WORKERS:-2}"
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }
state() { git ls-files -z --cached --others --exclude-standard nbs interpkit | xargs -0 sha256sum 2>/dev/null | sha256sum; }

step "nbdev-export and nbdev-clean"
before=$(state)
nbdev-export
nbdev-clean
if [ "$mode" = all ] && [ "$before" != "$(state)" ]; then
  git status --short nbs interpkit
  echo "Notebooks and package are out of step: run 'make export' and commit both." >&2
  exit 1
fi

if [ "$mode" = quick ]; then
  touched=$( (git diff --name-only HEAD; git ls-files --others --exclude-standard) | sort -u)
  for nb in $(grep '^nbs/.*\.ipynb$' <<<"$touched" | grep -v '^nbs/jobs/' || true); do
    if [ -f "$nb" ]; then step "$nb"; nbdev-test "$nb"; fi
  done
  tests=$(grep '^tests/test_.*\.py$' <<<"$touched" || true)
  if grep -q '^nbs/jobs/' <<<"$touched"; then tests+=" tests/test_gate_jobs.py"; fi
  for floor in $(sed -n 's|^interpkit/\([a-z]*\)/.*|\1|p' <<<"$touched" | sort -u); do tests+=" $(ls tests/test_"$floor"*.py 2>/dev/null || true)"; done
  tests=$(tr ' ' '\n' <<<"$tests" | sort -u | while read -r t; do [ -f "$t" ] && echo "$t"; done || true)
  [ -z "$tests" ] || { step "pytest"; python -m pytest -q -n "$workers" -m "not slow and not browser" $tests; }
  exit 0
fi

step "style"
ruff format --check .
python tools/style.py

step "notebooks"
# a job notebook needs the parameters of a run: tests/test_gate_jobs.py runs them all by papermill
nbdev-test --n-workers "$workers" --skip-folder-re '^[_.]|^jobs$'
step "pytest"
# in the order of tests/conftest.py: files with few tests are not the short ones
python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder -m "not slow" tests
step "done"
