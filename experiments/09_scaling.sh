#!/usr/bin/env bash
# Run 9: smaller networks on the data and tokens of run 2.
source "$(dirname "$0")/common.sh"
# scaled NAME WIDTH HEADS INNER LAYERS
scaled() {
  sft "scaling/$1" four recipes/four.toml --set "network.hidden_size=$2" \
    --set "network.num_attention_heads=$3" --set "network.num_key_value_heads=$3" \
    --set "network.intermediate_size=$4" --set "network.num_hidden_layers=$5"
  evaluate "scaling/$1" greedy
}
scaled 1m 128 2 320 6
scaled 6m 256 4 640 8
scaled 15m 384 6 1024 8
done_with scaling
