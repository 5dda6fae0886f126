#!/usr/bin/env bash
# Run 8: five numbers, with threads that spawn threads.
source "$(dirname "$0")/common.sh"
sft five five recipes/five.toml
[ "$COUNT" -le 100 ] || COUNT=100
evaluate five greedy
done_with five
