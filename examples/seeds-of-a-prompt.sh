#!/usr/bin/env bash
# Try many seeds of one prompt, look at the sheet, then draw the chosen one large.
#
#   examples/seeds-of-a-prompt.sh "a red apple" 16                writes seeds/ and seeds.png
#   examples/seeds-of-a-prompt.sh "a red apple" 16 7 512          and seed 7 at 512 pixels
set -euo pipefail

prompt=$1 count=$2
printf '%s\n' "$prompt" |
  star batch - --num "$count" --out seeds --template "{seed:03d}" --contact-sheet seeds.png --quiet >/dev/null
echo seeds.png
if [ $# -ge 4 ]; then
  star generate "$prompt" --seed "$3" --res "$4" --quiet --out "chosen-$3.png"
fi
