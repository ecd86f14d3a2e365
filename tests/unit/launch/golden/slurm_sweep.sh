#!/bin/bash
#SBATCH --job-name=effnet-sweep-a
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=60
#SBATCH --partition=gpu
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/w/runs/sweep-a/launch/slurm-%A_%a.out
#SBATCH --export=NONE
#SBATCH --array=0-3

# Rendered by effnet. Each task is an agent of one sweep. A task that starts again goes on with its trial.
set -u
export EFFNET_GRACE_S=30
export PYTHONPATH=/w/runs/sweep-a/launch/code-1
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
cd /w || exit 1

/env/bin/python -m launch.cli sweep --id=team/toys/a '--runs-dir=/w/it'"'"'s' &
agent=$!
trap 'kill -s USR1 "$agent"' USR1
trap 'kill -s TERM "$agent"' TERM INT
while kill -0 "$agent" 2> /dev/null; do wait "$agent"; done  # a signal ends one wait
wait "$agent"
code=$?

# 85: checkpointed after a signal. Slurm itself puts a job back that it preempts.
task="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
state=$(squeue --noheader --jobs="$task" --format=%T)
if [[ $code == 85 && $state == RUNNING && ${SLURM_RESTART_COUNT:-0} -lt 100 ]] &&
    scontrol requeue "$task"; then
    sleep 60  # Slurm ends this script
fi
exit "$code"
