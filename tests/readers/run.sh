#!/bin/sh
# Trains one agent of each kind for a moment, and reads what the runs wrote with the programs that
# the files are for: TensorBoard and the Python package of safetensors.
#
#     tests/readers/run.sh [VENV]
#
# VENV is a Python virtual environment, made and filled here where it does not exist; without the
# argument it is target/readers-venv. Exit code 1 when a file cannot be read.
set -eu
cd "$(dirname "$0")/../.."
venv=${1:-target/readers-venv}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
"$venv/bin/python" -c 'import numpy, safetensors, tensorboard, pkg_resources' 2>/dev/null ||
    "$venv/bin/pip" install --quiet tensorboard==2.21.0 'setuptools<81' safetensors==0.8.0 numpy

runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT

# Runs a command, whose standard error is shown only if it fails.
quietly() {
    "$@" 2>"$runs/stderr" || {
        cat "$runs/stderr" >&2
        exit 1
    }
}

train() {
    algorithm=$1
    shift
    quietly cargo run --quiet -p "$algorithm" -- --run-dir "$runs/$algorithm" --eval-episodes 2 "$@"
    quietly "$venv/bin/python" tests/readers/check_tensorboard.py "$runs/$algorithm"
}

# A network, several networks with temperature and replay buffer, a table, a search without gradients.
train ppo --total-timesteps 4096 --checkpoint-every 1024
train sac --total-timesteps 600 --learning-starts 300 --checkpoint-every 100
train q_learning --total-timesteps 1000
train es --total-timesteps 20000 --checkpoint-every 5000
for algorithm in ppo sac es; do
    "$venv/bin/python" tests/readers/check_safetensors.py "$runs/$algorithm"
done
"$venv/bin/python" tests/readers/check_safetensors.py "$runs/q_learning" model.safetensors
echo "all files were read"
