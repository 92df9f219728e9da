#!/usr/bin/env bash
# Runs hfbsz under Slurm, with one launcher per node:
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 scripts/slurm.sh recipe=NAME [key.path=value …]
# Submit it from the repository's folder, in the environment that has hfbsz. The arguments go to scripts/pretrain.py.
# Without GPUs, each node runs one process. HFBSZ_LAUNCH names another accelerate config (for FSDP2:
# accelerate_configs/fsdp2.yaml), but none with distributed_type NO, whose launcher exits at a signal without waiting
# for its process.
#
# Two minutes before the time limit, Slurm sends SIGUSR1 to this script, which sends SIGTERM to the ranks. The run ends
# after its step with a checkpoint, a saved model and the state "preempted" in status.json. The script then requeues the
# job (scontrol requeue), and the same command resumes from the newest checkpoint, until the run is finished. The job is
# not requeued
# - if the run finished, failed, was canceled, or could not save before its launcher killed it;
# - if no step was trained since the last start, or the recipe's `resume` is not auto: the job would never end;
# - with HFBSZ_REQUEUE=no sbatch …, or sbatch --no-requeue. The same command resumes the run later.
# `scancel --batch --signal=USR1 JOB` has the same effect before the time limit. A job that Slurm itself requeues (after
# a node failure, or for a job of higher priority) also resumes from the newest checkpoint.
# For a model that takes longer to save: TORCH_ELASTIC_SHUTDOWN_TIMEOUT=580 sbatch --signal=B:USR1@600 ….
# Every node that may run the job must have access to the run's folder.
#
# Tested (docs/launching.md): Slurm 22.05 on one machine, as one node and as two, with a CPU process on each: run to
# the end, stopped at the time limit and requeued until finished, canceled, a node lost.
# Not tested: GPUs, several machines.
#SBATCH --job-name=hfbsz
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?this is a script for sbatch}"
case ${HFBSZ_REQUEUE:=yes} in
  yes | no) ;;
  *) echo "error: HFBSZ_REQUEUE=$HFBSZ_REQUEUE: yes or no" >&2 && exit 2 ;;
esac
export MAIN_ADDRESS MAIN_PORT PROCESSES CONFIG
read -r MAIN_ADDRESS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000)) # so that two jobs on one node do not collide
PROCESSES=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1}))
CONFIG=${HFBSZ_LAUNCH:-accelerate_configs/multi_node.yaml}
# seconds that a launcher gives its ranks to save: fewer than the two minutes
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}

# Print the state and the step of the run that the arguments describe, and the recipe's `resume`.
run_state() {
  python - "$@" <<'END'
import sys

from hfbsz.records.folder import path_of, read_status
from hfbsz.recipe.load import load

loaded = load(sys.argv[1:])
status = read_status(path_of(loaded))
print(status.get("state", "none"), status.get("step", 0), loaded.recipe.resume)
END
}

# The signal is SIGTERM because Slurm sends it both to the ranks and to their launcher, which forwards it, and ranks
# treat a second SIGINT as "exit at once". It is sent once, because a second one ends the launchers before their ranks.
signaled="" interrupted=""
# shellcheck disable=SC2317 # called by the trap
end_the_step() {
  interrupted=yes
  [ -z "$signaled" ] || return 0
  signaled=yes
  echo "SIGUSR1: SIGTERM to the ranks"
  scancel --signal=TERM "$SLURM_JOB_ID.0" || signaled=""
}
trap end_the_step USR1

read -r _ before _ < <(run_state "$@" 2>/dev/null) || true # the run itself reports wrong arguments
echo "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $PROCESSES processes on $SLURM_JOB_NODELIST: $*"
# shellcheck disable=SC2016 # expanded by each task, which has its own SLURM_NODEID
srun --kill-on-bad-exit=1 --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
  exec accelerate launch --quiet --config_file "$CONFIG" --same_network --num_machines "$SLURM_NNODES" \
    --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" scripts/pretrain.py "$@"' launch "$@" &
step=$!

interrupted=yes
while [ -n "$interrupted" ]; do # a trapped signal ends `wait` before the step has ended
  interrupted="" code=0
  wait "$step" || code=$?
done
[ -n "$signaled" ] || exit "$code"

read -r state after resume < <(run_state "$@") || true
if [ "$state" = finished ]; then
  exit 0 # a launcher that got a signal does not exit with 0
elif [ "$state" != preempted ]; then
  why="the run's state is ${state:-unknown}"
elif [ "$after" -le "${before:-0}" ]; then
  why="no step was trained since step ${before:-0}"
elif [ "$resume" != auto ]; then
  why="resume=$resume does not resume from the newest checkpoint"
elif [ "$HFBSZ_REQUEUE" = no ]; then
  why="HFBSZ_REQUEUE=no"
else
  echo "preempted at step $after: scontrol requeue $SLURM_JOB_ID"
  if scontrol requeue "$SLURM_JOB_ID"; then exit "$code"; fi
  why="Slurm refused"
fi
echo "not requeued: $why"
exit "$code"
