#!/bin/bash
#SBATCH --job-name=effnet-b0-4d1e31
#SBATCH --dependency=singleton
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=13
#SBATCH --gres=gpu:4
#SBATCH --mem=400G
#SBATCH --time=1440
#SBATCH --account=vision
#SBATCH --partition=gpu,gpu-long
#SBATCH --qos=normal
#SBATCH --constraint="h100&ib"
#SBATCH --reservation=maintenance
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/home/me/runs/b0/launch/slurm-%j.out
#SBATCH --export=NONE
#SBATCH --exclusive
#SBATCH --mail-type=FAIL

# Rendered by effnet. All that the job does is in /home/me/runs/b0
set -u -o pipefail
run=/home/me/runs/b0
type module > /dev/null 2>&1 || source /etc/profile
module load cuda/13.0 || exit 1
export EFFNET_GRACE_S=30
export NCCL_IB_HCA=mlx5
export PYTHONPATH=/home/me/runs/b0/launch/code-0123456789ab
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
cd /home/me || exit 1

# Signals go to the tasks too, which checkpoint. The script stays to say how they ended.
trap : TERM INT USR1

# Python on the first node, where this script runs.
first_node() {
    srun --export=ALL --nodes=1 --ntasks=1 --relative=0 \
    --container-image='registry.example.org#effnet:1' \
    --container-mounts=/home/me:/home/me,/scratch/imagenet:/data:ro \
    --container-workdir=/home/me \
    --container-env=PYTHONPATH,PYTHONSAFEPATH,PYTHONUNBUFFERED \
    /opt/effnet/bin/python "$@"
}

# Number of this attempt, and a free port.
begun=$(first_node -m launch.attempt begin "$run") || exit
export EFFNET_ATTEMPT="${begun% *}" MASTER_PORT="${begun#* }"
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR

srun --export=ALL --ntasks-per-node=4 --cpus-per-task=13 \
    --distribution=block --kill-on-bad-exit=1 --wait=300 --label \
    --container-image='registry.example.org#effnet:1' \
    --container-mounts=/home/me:/home/me,/scratch/imagenet:/data:ro \
    --container-workdir=/home/me \
    --container-env=PYTHONPATH,PYTHONSAFEPATH,PYTHONUNBUFFERED \
    /opt/effnet/bin/python -m launch.rank /home/me/runs/b0
status=$?

# 0 done, 85 checkpointed after a signal, 93 do not retry, else a failure.
next=$(first_node -m launch.attempt end "$run" \
    --attempt="$EFFNET_ATTEMPT" --status="$status" --requeues="${SLURM_RESTART_COUNT:-0}" \
    --max-requeues=100 --max-failures=3)
code=$?
# Slurm itself puts a job back that it preempts, and one that was cancelled has another state too.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
if [[ $next == requeue && $state == RUNNING ]] && scontrol requeue "$SLURM_JOB_ID"; then
    sleep 60  # Slurm ends this script
fi
exit "$code"
