#!/bin/bash
# A folder job on nodes with GPUs: sbatch slurm.sh. Options on sbatch's command line win over those here.
# One process a node, with all of its GPUs. It may be preempted, reach its time limit and lose nodes.
#SBATCH --job-name=leapjax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --no-kill
#SBATCH --signal=TERM@120

: "${MODEL:=/shared/models/llada-8b}" "${INPUT:=/shared/prompts.jsonl}" "${OUTPUT:=/shared/answers}"
: "${OPTIONS:=--mesh data=8 --shard-size 100}" # e.g. --programs /shared/programs --no-compile
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-/shared/compiled}"

# Slurm sends SIGTERM to the processes before the time limit (--signal) and when it preempts the job.
# They save and end with status 143. This script outlives the signal, to put the job back into the queue.
trap : TERM
# shellcheck disable=SC2086
srun --kill-on-bad-exit=0 --no-kill \
    leapjax decode --model "$MODEL" --input "$INPUT" --output "$OUTPUT" --resume $OPTIONS
status=$?
if [ "$status" -eq 143 ]; then
    echo "stopped and saved; the job goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
