#!/usr/bin/env bash
# A wallpaper a day: the date is the seed, so today's is the same on every machine, and tomorrow's another.
#
#   examples/wallpaper-of-the-day.sh [DIR]        once a day, from cron or a timer; writes DIR/today.png
set -euo pipefail

dir=${1:-wallpapers}
day=$(date +%Y%m%d)
colours=(red green blue yellow orange purple pink white)
things=(fox panda whale penguin rocket sailboat sunflower)
prompt="a ${things[10#$day % ${#things[@]}]} on a ${colours[10#$day % ${#colours[@]}]} background"

mkdir -p "$dir"
picture="$dir/$day.png"
[ -e "$picture" ] || star generate "$prompt" --seed "$day" --quiet --out "$picture" >/dev/null
ln -sf "$day.png" "$dir/today.png"
echo "$dir/today.png"
