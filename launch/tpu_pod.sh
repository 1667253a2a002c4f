#!/usr/bin/env bash
# One JAX run on all workers of a Cloud TPU slice, one process a worker:
#
#     TPU=my-tpu ZONE=us-east5-b RUN=/mnt/runs/a launch/tpu_pod.sh
#     TPU=my-tpu ZONE=us-east5-b launch/tpu_pod.sh stop
#
# It copies this checkout's last commit to all workers, installs it there, fetches the shards and trains. Each step is
# left out where it is done; the same command goes on with a run that is there. `stop` tells the trainers to save their
# state and to end. The slice itself is made, and paid for, by you:
#
#     gcloud compute tpus tpu-vm create my-tpu --zone us-east5-b --accelerator-type v6e-16 --version v2-alpha-tpuv6e
#
# Variables, with their defaults:
#   TPU           needed            the slice's name
#   ZONE          needed            its zone
#   PROJECT       gcloud's own      its project
#   RUN           needed            the run's folder, where all workers see it: Filestore, or a bucket under gcsfuse
#   RECIPE        muon-2024-10-12   what to train; python -m jaxgpt.recipes lists them
#   SEED          0                 of the initial weights
#   SHARDS        35                FineWeb training shards to fetch, by each worker to its own disk
#   DATA          none              glob of training shards there already; then nothing is fetched
#   VAL_DATA      none              glob of their validation shards
#   FLAGS         none              more flags of the trainer, such as '--steps 500 --val-every 50'
#   THERE         jaxgpt            the folder on the workers, below their home
#   PYTHON        venv/bin/python   the interpreter there
#   SETUP         uv: Python 3.12 and '.[tpu]' (the image's Python is too old)   what makes that interpreter, in THERE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TPU=${TPU:?is the name of the slice: gcloud compute tpus tpu-vm list}
ZONE=${ZONE:?is the zone of the slice}
RECIPE=${RECIPE:-muon-2024-10-12}
THERE=${THERE:-jaxgpt}
PYTHON=${PYTHON:-venv/bin/python}
uv="python3 -m pip install -q --user uv && python3 -m uv venv -q --allow-existing --python 3.12 venv"
SETUP=${SETUP:-"$uv && python3 -m uv pip install -q --python venv/bin/python '.[tpu]'"}
read -ra flags <<<"${FLAGS:-}"

at=(--zone "$ZONE")
if [[ -n ${PROJECT:-} ]]; then at+=(--project "$PROJECT"); fi

# on WORKER COMMAND: that command in the folder on the workers; WORKER is a number or all
on() { gcloud compute tpus tpu-vm ssh "$TPU" "${at[@]}" --worker "$1" --command "cd $THERE && $2"; }

# quoted WORD...: as a shell over there reads them back
quoted() { printf '%q ' "$@"; }

if [[ ${1:-} == stop ]]; then
    on all "pkill --signal TERM --full '[j]axgpt.train' || true"
    exit
elif (($#)); then
    echo "error: $1: give stop, or nothing to train" >&2
    exit 2
fi
RUN=${RUN:?is the folder of the run, where all workers see it}

commit=$(git rev-parse HEAD)
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
git archive --format tar.gz --output "$here/jaxgpt.tar.gz" HEAD
gcloud compute tpus tpu-vm scp "$here/jaxgpt.tar.gz" "$TPU:" "${at[@]}" --worker all
unpacked="mkdir -p $THERE && tar -xzf jaxgpt.tar.gz -C $THERE"
gcloud compute tpus tpu-vm ssh "$TPU" "${at[@]}" --worker all --command "$unpacked"
on all "{ grep -qsx $commit installed || { $SETUP && echo $commit > installed; }; }"

words=(--recipe "$RECIPE" --run "$RUN" --seed "${SEED:-0}" --processes auto)
if [[ -n ${DATA:-} ]]; then
    words+=(--data "$DATA" --val-data "${VAL_DATA:?is the glob of the validation shards that go with DATA}")
elif [[ $RECIPE != tiny* ]]; then
    on all "$PYTHON -m jaxgpt.corpus fineweb --shards ${SHARDS:-35}"
fi
# Once, before any of them starts: the first one makes the folder.
if on 0 "test -d $(quoted "$RUN")"; then words+=(--resume); fi
on all "$PYTHON -m jaxgpt.train $(quoted "${words[@]}" ${flags[@]+"${flags[@]}"})"
