#!/usr/bin/env bash
# Run 1: how fast are training, decoding and reinforcement learning on this device, and in what memory?
source "$(dirname "$0")/common.sh"
out=$OUT/throughput
mkdir -p "$out" "$WORK/throughput"
bench() {
  local name=$1
  shift
  local file=$WORK/throughput/$name
  once "$file.log" "$PYTHON" -m benchmarks.sft "$@" "${TINY_BENCH[@]}" --steps "$TIMED" \
    --demonstrations "$DEMONSTRATIONS"
  cat "$file.log" >&2
  tail -1 "$file.log" >"$out/$name.json"
}
TIMED=30 DEMONSTRATIONS=2000
[ "${REHEARSE:-0}" = 0 ] || { TIMED=2 DEMONSTRATIONS=10; }
bench attention recipes/four.toml --attention varlen flex padded
bench eager recipes/four.toml --eager
bench wide recipes/four.toml --set network.hidden_size=768 --set network.intermediate_size=1920 \
  --set network.num_attention_heads=12 --set network.num_key_value_heads=12 \
  --set network.num_hidden_layers=3
bench serial recipes/four.toml "${SERIAL[@]}"

# A network that has hardly been trained writes until its window is full: decoding at its longest.
sft untrained untrained recipes/four.toml --set count=5000 --set sft.steps=20
evaluate untrained decoding --method serial --temperature 1 --seed 0
grpo untrained-rl untrained --set "checkpoint=$OUT/untrained/checkpoint" \
  --set grpo.steps=2 --set grpo.validate_every=2
rm -r "$OUT"/{untrained,untrained-rl}/checkpoint
done_with throughput
