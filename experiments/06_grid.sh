#!/usr/bin/env bash
# Run 6: every model, temperature, budget and window on the same problems, beside the paper's figures.
source "$(dirname "$0")/common.sh"
# A copy of the grid names the checkpoints where they lie, and what decodes them.
mkdir -p "$WORK" "$OUT/grid"
sed -e "s|\"results/|\"$IN/|" -e "s|^checkpoint = .*|&\nengine = \"${ENGINE//&/\\&}\"|" \
  recipes/grid-four.toml >"$WORK/grid-four.toml"
within "$PYTHON" -m apr eval "$WORK/grid-four.toml" --out "$WORK/grid" --json \
  --set "count=$COUNT" >"$WORK/grid.json"
cp "$WORK/grid.json" "$WORK/grid-four.toml" "$OUT/grid"
# All but the traces, which are large: enough to draw the report again.
find "$WORK/grid" \( -name "*.json" -o -name "*.parquet" \) -printf "%P\n" |
  tar -C "$WORK/grid" -cf - -T - | tar -C "$OUT/grid" -xf -
apr report "$WORK/grid" --out "$OUT/grid/report"
done_with grid
