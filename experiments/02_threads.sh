#!/usr/bin/env bash
# Run 2: threads (APR), supervised; all results, or those up to 300 and products compared.
# 02_threads.sh [balanced]
source "$(dirname "$0")/common.sh"
BALANCED=(--set demonstrations.solver.max_value=300 --set demonstrations.solver.max_final=0
  --set demonstrations.solver.balances=true --set demonstrations.balanced=0.35
  --set demonstrations.repeated=0.15 --set demonstrations.rests=true
  --set demonstrations.dead_ends=0.25 --set operator_weight=2 --set sft.spawn_weight=5
  --set sft.message_weight=5 --set count=250000)
case ${1:-} in
"") name=threads data=four more=() ;;
balanced) name=threads-balanced data=four-balanced more=("${BALANCED[@]}") ;;
*) echo "usage: $0 [balanced]" >&2; exit 2 ;;
esac
sft $name $data recipes/four.toml "${more[@]}"
evaluate $name greedy
evaluate $name t1 --temperature 1 --seed 0
done_with $name
