#!/bin/sh
# A newcomer's first hour in a minute: `sh examples/newcomer.sh [FOLDER]`, after the two lines of README's "Install".
# Documented commands only; the tests run this file. FOLDER: where everything goes (default out/newcomer).
# UPDATES and WIDTH are tiny, to see it work; leave the four options of the first `train` out for a model.
set -eu
OUT=${1:-out/newcomer} PYTHON=${PYTHON:-python} UPDATES=${UPDATES:-20} WIDTH=${WIDTH:-16}
HERE=$(cd "$(dirname "$0")" && pwd)
pfgm() { "$PYTHON" -m pfgm_fast "$@"; } # the same as `pfgm-fast`
mkdir -p "$OUT" && cd "$OUT"

# The ten lines: a point cloud, its field's picture, new points.
"$PYTHON" "$HERE/toy_2d.py"

# Forty colour pictures of two classes, no two of one size: any folder of yours with a folder a class will do.
"$PYTHON" - <<'PICTURES'
import pathlib, random
from PIL import Image, ImageDraw
random.seed(0)
for i in range(40):
    name, width, height = ("disc", "square")[i % 2], random.randint(27, 45), random.randint(23, 39)
    picture = Image.new("RGB", (width, height), (30, 60, random.randint(60, 160)))
    shape = ImageDraw.Draw(picture)
    (shape.ellipse if name == "disc" else shape.rectangle)((5, 5, width - 6, height - 6), (230, 160, random.randint(20, 90)))
    pathlib.Path("pictures", name).mkdir(parents=True, exist_ok=True)
    picture.save(f"pictures/{name}/{i}.png")
PICTURES

# Train: size, channels, classes, network and method follow from the pictures.
pfgm train --data pictures --out run --steps "$UPDATES" --set train.batch=16 --set network.width="$WIDTH" --set network.blocks=1
# Twelve samples of one class, as one picture and as one file each.
pfgm sample run --labels disc --count 12 --steps 10 --out discs.png --images discs
# How good they are, in numbers.
pfgm evaluate run --count 20 --steps 10 --json figures.json
# Go on: the same command with more updates; it begins where it stopped.
pfgm train --out run --steps $((UPDATES + 5))
pfgm sample run --count 16 --solver heun --steps 5 --out samples.png
