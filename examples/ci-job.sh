#!/usr/bin/env bash
# For a CI job or a scheduler: draw this machine's part, go on after a time-out, fail only when images failed.
#
#   PART=2 PARTS=8 examples/ci-job.sh prompts.txt DIR
# or, as a job array:
#   sbatch --array=1-8 --wrap 'PART=$SLURM_ARRAY_TASK_ID PARTS=8 examples/ci-job.sh prompts.txt DIR'
set -euo pipefail

input=$1 dir=$2
star batch "$input" --out "$dir" --dry-run --shard "${PART:-1}/${PARTS:-1}" >/dev/null # bad input fails here: exit 2

for attempt in 1 2 3; do
  code=0
  star batch "$input" --out "$dir" --shard "${PART:-1}/${PARTS:-1}" --max-failures 20 --retry-failed --json \
    >>"$dir.events-${PART:-1}.jsonl" || code=$?
  case $code in
    0) echo "all done" && exit 0 ;;
    1) echo "attempt $attempt: some images failed" >&2 ;;
    *) exit "$code" ;; # 2: bad input, 130: stopped; calling it again goes on where it was
  esac
done
exit 1
