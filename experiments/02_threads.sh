#!/usr/bin/env bash
# Run 2: threads (APR), supervised.
source "$(dirname "$0")/common.sh"
sft threads four recipes/four.toml
evaluate threads greedy
evaluate threads t1 --temperature 1 --seed 0
done_with threads
