#!/usr/bin/env bash
# The lessons and tests of everything that trains, measures or explains, under other instruction sets
# and orders of summation than this machine's own, which `make test` runs: what passes there only by
# its rounding fails here. What asks about words, files, processes and equal bytes is left out, and
# what ATen does not compute (JAX, Triton's interpreter). About ten minutes each on two cores.
# Arguments: the arms to run (default: all).
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_WAIT_POLICY=passive  # two workers of two threads each, on two cores
nvidia-smi > /dev/null 2>&1 || export TRITON_INTERPRET=1

run() { # name, threads, instruction sets of ATen, oneDNN and MKL
  printf '\n== %s (%d s)\n' "$1" "$SECONDS"
  export OMP_NUM_THREADS=$2
  export ATEN_CPU_CAPABILITY=$3 ONEDNN_MAX_CPU_ISA=$4 MKL_ENABLE_INSTRUCTIONS=$5
  nbdev-test --n-workers 2 --skip-folder-re '^[_.]|^(benchmarks|jobs|00_core|09_gate)$'
  python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" \
    --ignore-glob 'tests/test_[chp][!h]*' --ignore-glob 'tests/test_gate_[!ac]*' \
    --ignore-glob 'tests/test_training_fit.py' --ignore-glob 'tests/test_*_triton_kernels.py' \
    --ignore-glob 'tests/test_bridges_jax.py' --ignore-glob 'tests/test_data_st*' tests
}

for arm in "${@:-oldest avx2}"; do
  for name in $arm; do
    case $name in
      oldest) run "no vector instructions beyond SSE4" 1 default SSE41 SSE4_2 ;;
      avx2) run "AVX2, sums over two threads" 2 avx2 AVX2 AVX2 ;;
      *) echo "arms: oldest avx2; given: $name" >&2; exit 64 ;;
    esac
  done
done
