#!/usr/bin/env bash
# The README's commands that need a GPU, in its order:
#
#     DATA='/my/text_train_*.bin' VAL_DATA='/my/text_val_*.bin' benchmarks/readme_gpu.sh
#
# Each is run as it stands there, in the folder OUT; the README's globs are these two. Where one fails the others are run
# all the same, and the script ends with 1. What takes eight GPUs is left out on fewer, and said. On an H100 the runs took
# 4.1 and 4.5 minutes, benchmarks.loader 4, benchmarks.throughput 5.4, benchmarks.breakdown 2, benchmarks.growth 8.7. parity_tests/test_readme_commands.py
# checks that no command of the README is missing here.
#
# Last run: 2026-11-27, NVIDIA H100 80GB HBM3, four of a host that shared the commands by ONLY, JAX 0.11.2, torch 2.11.0.
# None failed. benchmarks.loader and launch.plan ran on another such machine later that day. benchmarks.scaling was left out,
# for it takes eight.
#
# Variables:
#   DATA       needed           glob of shards of GPT-2 tokens to train on, with its folder's whole path
#   VAL_DATA   needed           the same of the shards to validate on; 1,048,577 tokens at least
#   OUT        runs/readme-gpu  folder of all that is written; must be new
#   ONLY       all              an extended regular expression: run the commands that it is found in, so that several
#                               GPUs can share them. The runs want the weights, the report wants the runs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DATA=${DATA:?is the glob of the shards to train on}
VAL_DATA=${VAL_DATA:?is the glob of the shards to validate on}
OUT=${OUT:-runs/readme-gpu}
ONLY=${ONLY:-.}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
cards=$(nvidia-smi --list-gpus | wc -l)
failed=0

# run COMMAND...: that command, said before; a failure is noted
run() {
    [[ "$*" =~ $ONLY ]] || return 0
    printf '\n%s  %s\n' "$(date +%T)" "$*"
    if ! "$@"; then
        printf 'FAILED: %s\n' "$*"
        failed=1
    fi
}

# run_on CARDS COMMAND...: the same, where there are so many GPUs
run_on() {
    local needed=$1
    shift
    if ((cards < needed)); then
        printf '\nLEFT OUT, for %s GPUs: %s\n' "$needed" "$*"
    else
        run "$@"
    fi
}

mkdir -p "$(dirname "$OUT")"
mkdir "$OUT"
cd "$OUT"
date +%F
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python -c 'import jax, torch; print("jax", jax.__version__, "torch", torch.__version__)'

run python -m jaxgpt.bridge --recipe muon-2024-10-12 --out w.safetensors
run python -m jaxgpt.train --recipe muon-2024-10-12 --mesh 1 --init-from w.safetensors --steps 200 --val-every 50 \
    --val-tokens 1048576 --data "$DATA" --val-data "$VAL_DATA" --run runs/jax
run python -m torch_ref.train --recipe muon-2024-10-12 --mesh 1 --init-from w.safetensors --steps 200 --val-every 50 \
    --val-tokens 1048576 --data "$DATA" --val-data "$VAL_DATA" --run runs/torch
run python -m jaxgpt.compare runs/jax runs/torch --out report
run python -m benchmarks.loader --recipe muon-2024-10-12 --data "$DATA"
run python -m benchmarks.throughput --recipe muon-2024-10-12 --data "$DATA" --val-data "$VAL_DATA" --out throughput.json
run python -m benchmarks.breakdown --recipe muon-2024-10-12
run_on 8 python -m benchmarks.scaling --recipe muon-2024-10-12 --devices 1 2 4 8 --out scaling.json
run python -m launch.plan --topology h100:8
run python -m benchmarks.growth --out growth.json

exit "$failed"
