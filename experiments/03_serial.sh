#!/usr/bin/env bash
# Run 3: the same searches told by one thread (SoS+), as many tokens.
source "$(dirname "$0")/common.sh"
sft serial four-serial recipes/four.toml "${SERIAL[@]}" --set count=800000
evaluate serial greedy --method serial
evaluate serial t1 --method serial --temperature 1 --seed 0
done_with serial
