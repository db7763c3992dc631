#!/bin/sh
# The algorithms of several ranks over MPI: two ranks on this machine, two on two hosts, and a host
# that fails.
#
#   sudo tests/mpi/two_hosts.sh
#
# The two hosts are network namespaces of this machine: each has a network stack and a host name of
# its own, and a cable (a veth pair) is all that connects them. They share the file system, as the
# hosts of a cluster do. Three things are checked of each algorithm:
#
# - it reaches the threshold of its gate (`tests/thresholds.toml` in its folder);
# - its model is, byte for byte, the one that two threads make;
# - so it is when a host fails half-way and the run is resumed from its last checkpoint.
#
# Needs root, iproute2, and what building with MPI needs (Debian's names):
#
#   apt-get install iproute2 openmpi-bin libopenmpi-dev libclang1-14 libclang-common-14-dev
set -eu
cd "$(dirname "$0")/../.."

algorithms="es impala a3c async_q gorila d4pg"
cargo build $(printf -- '-p %s ' $algorithms) --features common/mpi
programs=${CARGO_TARGET_DIR:-target}/debug
work=$(mktemp -d)
near=plainrl-near
far=plainrl-far

# A leftover of an earlier run that was killed is removed too.
clean_up() {
    ip netns del $near 2>/dev/null || true
    ip netns del $far 2>/dev/null || true
}
trap 'clean_up; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
clean_up

# Two hosts and the cable between them.
ip netns add $near
ip netns add $far
ip link add plainrl0 netns $near type veth peer name plainrl0 netns $far
ip -n $near address add 10.77.0.1/24 dev plainrl0
ip -n $far address add 10.77.0.2/24 dev plainrl0
for host in $near $far; do
    ip -n $host link set lo up
    ip -n $host link set plainrl0 up
done

# mpirun starts its daemon on another host with `ssh HOST COMMAND`; this takes the place of ssh.
# Open MPI tells hosts apart by their names, so the far one gets its own.
cat > "$work/agent" <<AGENT
#!/bin/sh
shift # the host: there is but one other
exec ip netns exec $far unshare --uts sh -c 'hostname $far && exec sh -c "\$0"' "\$*"
AGENT
chmod +x "$work/agent"

# Open MPI refuses root, which namespaces need, unless it is told twice. All ranks share this
# machine's cores, so that one that waits must let the others work.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_mpi_yield_when_idle=1

one_host() {
    mpirun -n 2 --oversubscribe "$@"
}

two_hosts() {
    ip netns exec $near unshare --uts sh -c "hostname $near && exec \"\$@\"" sh \
        mpirun -n 2 --host 10.77.0.1,10.77.0.2 --mca plm_rsh_agent "$work/agent" \
        --mca oob_tcp_if_include 10.77.0.0/24 --mca btl self,tcp --mca btl_tcp_if_include 10.77.0.0/24 "$@"
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

bytes_received() {
    ip netns exec $near cat /sys/class/net/plainrl0/statistics/rx_bytes
}

# check WHAT RUN_DIR: the gate and the model of the run there, against those of two threads.
check() {
    mean=$(sed -n 's/.*eval.episodic_return,//p' "$2/metrics.csv" | tail -1)
    awk "BEGIN { exit !($mean >= $threshold) }" || fail "$1: return $mean, $threshold is expected"
    cmp "$2/model.safetensors" "$work/$algorithm-threads/model.safetensors" || fail "$1: another model"
    echo "$1: return $mean, the same model as with threads"
}

for algorithm in $algorithms; do
    program=$programs/$algorithm
    threshold=$(sed -n 's/^threshold = //p' "algorithms/$algorithm/tests/thresholds.toml" | head -1)
    run=$work/$algorithm
    "$program" --workers 2 --run-dir "$run-threads" >"$work/log" 2>&1 || fail "$(cat "$work/log")"

    one_host "$program" --workers 2 --run-dir "$run-one" >"$work/log" 2>&1 || fail "$(cat "$work/log")"
    check "$algorithm, two ranks on one host" "$run-one"

    before=$(bytes_received)
    two_hosts "$program" --workers 2 --run-dir "$run-two" >"$work/log" 2>&1 || fail "$(cat "$work/log")"
    check "$algorithm, a rank on each of two hosts" "$run-two"
    received=$(($(bytes_received) - before))
    [ $received -gt 10000 ] || fail "$algorithm: only $received bytes came over the cable"
    echo "$algorithm: $received bytes came over the cable"

    # Once there is a checkpoint, the program on the far host is killed, as if its power were cut.
    two_hosts "$program" --workers 2 --run-dir "$run-cut" --checkpoint-every 20000 >"$work/log" 2>&1 &
    job=$!
    until [ -e "$run-cut/checkpoint.safetensors" ]; do
        kill -0 $job 2>/dev/null || fail "$algorithm ended before its first checkpoint: $(cat "$work/log")"
        sleep 0.05
    done
    far_network=$(ip netns exec $far readlink /proc/self/ns/net)
    for process in $(pgrep -f -- "--run-dir $run-cut"); do
        if [ "$(readlink "/proc/$process/exe")" = "$(readlink -f "$program")" ] &&
            [ "$(readlink "/proc/$process/ns/net")" = "$far_network" ]; then
            kill -KILL "$process"
        fi
    done
    wait $job && fail "$algorithm: the run ended well although a rank was killed"
    [ ! -e "$run-cut/summary.json" ] || fail "$algorithm: the run ended before a rank was killed"
    # As a user would have it in the job's script, who tries for longer.
    tries=3
    until two_hosts "$program" --workers 2 --resume "$run-cut" >"$work/log" 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "$algorithm: cannot be resumed: $(cat "$work/log")"
        sleep 1
    done
    check "$algorithm, a host failed and the run was resumed" "$run-cut"
done
echo "all passed"
