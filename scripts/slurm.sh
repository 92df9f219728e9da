#!/usr/bin/env bash
# One run under Slurm, one launcher a node:
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 scripts/slurm.sh recipe=NAME [key.path=value …]
# from the repository's folder, in the environment that has hfbsz; the words go to scripts/pretrain.py. Without GPUs each
# node runs one process. HFBSZ_LAUNCH names another accelerate config (FSDP2: accelerate_configs/fsdp2.yaml; none of
# distributed_type NO, whose launcher leaves at a signal without waiting for its process).
#
# Two minutes before the time is up Slurm sends SIGUSR1 to this script, which sends SIGTERM to the ranks: the run ends
# after its step with a checkpoint, a saved model and the state "preempted" in status.json. The script then requeues the
# job (scontrol requeue), and the same words go on from the newest checkpoint, until the run is finished. It does not
# - where the run finished, failed, was cancelled, or could not save before its launcher killed it;
# - where no step was trained since the last time, or the recipe's `resume` is not auto: the job would never end;
# - where you said so: HFBSZ_REQUEUE=no sbatch …, or sbatch --no-requeue. The same command goes on when you want it.
# `scancel --batch --signal=USR1 JOB` does the same before the time is up. A job that Slurm itself requeues (a node
# failed, a job of higher priority came) goes on from the newest checkpoint, too. For a model that takes longer to save:
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT=580 sbatch --signal=B:USR1@600 …. The run's folder must lie where every node that may
# get the job sees it.
#
# Run so far: Slurm 22.05 on one machine, as one node and as two, a CPU process on each: to the end, to the time limit
# and requeued until finished, cancelled, a node lost. GPUs and several machines were not run (docs/launching.md).
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
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node do not meet
PROCESSES=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1}))
CONFIG=${HFBSZ_LAUNCH:-accelerate_configs/multi_node.yaml}
# seconds that a launcher gives its ranks to save, below the two minutes
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}

# How the run that the words ask for stands: its state, its step, and the recipe's `resume`.
standing() {
  python - "$@" <<'END'
import sys

from hfbsz.records.folder import path_of, read_status
from hfbsz.recipe.load import load

loaded = load(sys.argv[1:])
status = read_status(path_of(loaded))
print(status.get("state", "none"), status.get("step", 0), loaded.recipe.resume)
END
}

# SIGTERM, for Slurm sends it to the ranks and to their launcher, which passes it on, and ranks take a second SIGINT as
# "at once". Sent once, for a second one ends the launchers before their ranks.
signalled="" again=""
# shellcheck disable=SC2317 # called by the trap
end_the_step() {
  again=yes
  [ -z "$signalled" ] || return 0
  signalled=yes
  echo "SIGUSR1: SIGTERM to the ranks"
  scancel --signal=TERM "$SLURM_JOB_ID.0" || signalled=""
}
trap end_the_step USR1

read -r _ before _ < <(standing "$@" 2>/dev/null) || true # words that are wrong are told by the run
echo "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $PROCESSES processes on $SLURM_JOB_NODELIST: $*"
# shellcheck disable=SC2016 # expanded by each task: SLURM_NODEID is its own
srun --kill-on-bad-exit=1 --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
  exec accelerate launch --quiet --config_file "$CONFIG" --same_network --num_machines "$SLURM_NNODES" \
    --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" scripts/pretrain.py "$@"' launch "$@" &
step=$!

again=yes
while [ -n "$again" ]; do # a trapped signal ends `wait` before the step has ended
  again="" code=0
  wait "$step" || code=$?
done
[ -n "$signalled" ] || exit "$code"

read -r state after resume < <(standing "$@") || true
if [ "$state" = finished ]; then
  exit 0 # a launcher that got a signal does not exit with 0
elif [ "$state" != preempted ]; then
  why="the run's state is ${state:-unknown}"
elif [ "$after" -le "${before:-0}" ]; then
  why="no step was trained since step ${before:-0}"
elif [ "$resume" != auto ]; then
  why="resume=$resume would not go on from the newest checkpoint"
elif [ "$HFBSZ_REQUEUE" = no ]; then
  why="HFBSZ_REQUEUE=no"
else
  echo "preempted at step $after: scontrol requeue $SLURM_JOB_ID"
  if scontrol requeue "$SLURM_JOB_ID"; then exit "$code"; fi
  why="Slurm refused"
fi
echo "not requeued: $why"
exit "$code"
