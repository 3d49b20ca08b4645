#!/usr/bin/env bash
# One contact sheet for each list of prompts: lists/birds.txt becomes sheets/birds.png.
#
#   examples/sheet-per-list.sh LIST.txt...        call it again after a change: only new lines are drawn
set -euo pipefail

mkdir -p sheets images
for list in "$@"; do
  name=$(basename "$list" .txt)
  star batch "$list" --out "images/$name" --contact-sheet "sheets/$name.png" --quiet >/dev/null
  echo "sheets/$name.png"
done
