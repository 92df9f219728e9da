#!/usr/bin/env bash
# One run under Slurm, one launcher a node:
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 scripts/slurm.sh recipe=NAME [key.path=value …]
# from the repository's folder, in the environment that has hfbsz; the words go to scripts/pretrain.py. Without GPUs each
# node runs one process. HFBSZ_LAUNCH names another accelerate config (FSDP2: accelerate_configs/fsdp2.yaml).
#
# Two minutes before the time is up the ranks get SIGINT: the run ends after its step with a saved model and the state
# "preempted" in status.json (Slurm says FAILED: a launcher that got a signal does not exit with 0). It is not put back
# into the queue then. A run that is submitted again, or that Slurm itself requeues (--requeue: a node failed, a job of
# higher priority came) goes on from its newest checkpoint. Its folder must lie where every node that may get the job
# sees it.
#
# Run so far: Slurm 22.05 on one machine, as one node and as two, a CPU process on each: to the end, to the signal, and
# requeued (before there were checkpoints: it started anew). GPUs and several machines were not run (docs/launching.md).
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
export MAIN_ADDRESS MAIN_PORT PROCESSES CONFIG
read -r MAIN_ADDRESS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node do not meet
PROCESSES=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1}))
CONFIG=${HFBSZ_LAUNCH:-accelerate_configs/multi_node.yaml}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100 # seconds that the launcher gives the ranks to save, below the two minutes

echo "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $PROCESSES processes on $SLURM_JOB_NODELIST: $*"
# shellcheck disable=SC2016 # expanded by each task: SLURM_NODEID is its own
srun --kill-on-bad-exit=1 --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
  exec accelerate launch --quiet --config_file "$CONFIG" --same_network --num_machines "$SLURM_NNODES" \
    --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" scripts/pretrain.py "$@"' launch "$@" &
step=$!

# The launchers pass the signal on to their ranks, once.
trap 'again=yes; echo "the time is almost up: SIGINT to the ranks"; scancel --signal=INT "$SLURM_JOB_ID.0" || true' USR1

again=yes
while [ -n "$again" ]; do # a trapped signal ends `wait` before the step has ended
  again="" code=0
  wait "$step" || code=$?
done
exit "$code"
