#!/usr/bin/env bash
# Standard output into another program: a framed picture, without a file between.
#
#   examples/pipe-to-magick.sh "a red apple" framed.png         needs ImageMagick
set -euo pipefail

magick=$(command -v magick || command -v convert)
star generate "$1" --out - --quiet | "$magick" png:- -bordercolor white -border 16 "$2"
echo "$2"
