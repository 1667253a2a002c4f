#!/usr/bin/env bash
# One recipe in both frameworks on one node, from shards to certificate, in one command:
#
#     launch/gpu8.sh
#     RECIPE=llmc-2024-10-13 SHARDS=103 launch/gpu8.sh
#     GPUS=1 STEPS=200 DATA='my/text_train_*.bin' VAL_DATA='my/text_val_*.bin' launch/gpu8.sh
#
# It fetches the shards, makes initial weights, trains JAX and then PyTorch from them, compares the two with the
# published curve, and writes the parity certificate. Where it was stopped, the same command goes on: what is finished is
# left alone, a run goes on from its last checkpoint. Needs pip install -e '.[cuda13,test]'.
#
# Variables, with their defaults; paths are relative to the project's folder:
#   RECIPE        muon-2024-10-12   what to train; python -m jaxgpt.recipes lists them
#   GPUS          8                 devices; without a GPU, virtual ones in JAX and processes in PyTorch
#   OUT           runs/RECIPE-GPUSgpu-seedSEED   folder of all that is written; name another for other settings
#   SEED          0                 of the initial weights, which both frameworks start from
#   STEPS         the recipe's      updates; warm-up and warm-down are scaled with it
#   SHARDS        35                FineWeb training shards to fetch; 35 do for 3.25B tokens, 103 are all
#   DATA          none              glob of training shards of your own; then nothing is fetched
#   VAL_DATA      none              glob of their validation shards
#   FLAGS         none              more flags of both trainers, such as '--val-every 500'; none of the model's
#   PUBLISHED     the recipe's own, and muon-2024-10-10 beside muon-2024-10-12, which has no log: curves to lay over
#   CERTIFICATES  cpu, and gpu where nvidia-smi is: where the ladder is climbed; 'none' leaves it out
#   TESTS         parity_tests/     which tests that is
#   PYTHON        python            the interpreter that has the project installed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RECIPE=${RECIPE:-muon-2024-10-12}
GPUS=${GPUS:-8}
SEED=${SEED:-0}
SHARDS=${SHARDS:-35}
OUT=${OUT:-runs/$RECIPE-${GPUS}gpu-seed$SEED}
PYTHON=${PYTHON:-python}
TESTS=${TESTS:-parity_tests/}

if [[ $RECIPE == muon-2024-10-12 ]]; then
    PUBLISHED=${PUBLISHED:-muon-2024-10-10}
fi
if command -v nvidia-smi >/dev/null; then
    CERTIFICATES=${CERTIFICATES:-cpu gpu}
fi
read -ra flags <<<"${FLAGS:-}"
read -ra published <<<"${PUBLISHED:-}"
read -ra devices <<<"${CERTIFICATES:-cpu}"
read -ra tests <<<"$TESTS"

say() { printf '\n%s  %s\n' "$(date +%T)" "$*"; }

# train FOLDER COMMAND...: start that run, or go on with it
train() {
    local run=$1 words=(--recipe "$RECIPE" --mesh "$GPUS" --seed "$SEED" --run "$1")
    shift
    words+=(--init-from "$OUT/weights.safetensors" ${data[@]+"${data[@]}"} ${flags[@]+"${flags[@]}"})
    if [[ -n ${STEPS:-} ]]; then words+=(--steps "$STEPS"); fi
    if [[ -d $run ]]; then words+=(--resume); fi
    "$@" "${words[@]}"
}

mkdir -p "$OUT"
data=()
if [[ -n ${DATA:-} ]]; then
    data=(--data "$DATA" --val-data "${VAL_DATA:?is the glob of the validation shards that go with DATA}")
elif [[ $RECIPE != tiny* ]]; then
    say "FineWeb: $SHARDS training shards of 200 MB"
    "$PYTHON" -m jaxgpt.corpus fineweb --shards "$SHARDS"
fi

if [[ ! -e $OUT/weights.safetensors ]]; then
    say "initial weights"
    "$PYTHON" -m jaxgpt.bridge --recipe "$RECIPE" --seed "$SEED" --out "$OUT/weights.safetensors"
fi

say "JAX on $GPUS devices"
train "$OUT/jax" "$PYTHON" -m jaxgpt.train

say "PyTorch on $GPUS devices"
if [[ $GPUS == 1 ]]; then
    train "$OUT/torch" "$PYTHON" -m torch_ref.train
else
    # the machine need not know its own name, and of several runs on it each finds a port
    torchrun=("$PYTHON" -m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node "$GPUS" -m --)
    train "$OUT/torch" "${torchrun[@]}" torch_ref.train
fi

say "both, and what was published"
words=("$OUT/jax" "$OUT/torch" --out "$OUT/report")
if ((${#published[@]})); then words+=(--published "${published[@]}"); fi
"$PYTHON" -m jaxgpt.compare "${words[@]}"

for device in "${devices[@]}"; do
    if [[ $device == none || -e $OUT/certificate-$device.passed ]]; then continue; fi
    say "the ladder on $device"
    rm -rf "${OUT:?}/certificate-$device"
    words=("${tests[@]}" --certificate "$OUT/certificate-$device")
    if [[ $device != cpu ]]; then words+=(--device "$device"); fi
    "$PYTHON" -m pytest "${words[@]}"
    touch "$OUT/certificate-$device.passed"
done
say "$OUT: runs jax and torch, report, certificates"
