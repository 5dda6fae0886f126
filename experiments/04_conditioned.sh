#!/usr/bin/env bash
# Run 4: conditioned on a budget: of children in all, of children in a round, or of the window.
# 04_conditioned.sh threads|rounds|serial
source "$(dirname "$0")/common.sh"
case ${1:-} in
threads)
  sft threads-children four-children recipes/four.toml --set demonstrations.condition=children \
    --set "demonstrations.solver.beam=[1,24]"
  evaluate threads-children 6 --children 6
  evaluate threads-children 18 --children 18
  done_with threads-children
  ;;
rounds)
  sft threads-rounds four-rounds recipes/four.toml --set demonstrations.condition=children \
    --set "demonstrations.solver.beam=[1,8]" --set demonstrations.solver.rounds=0 \
    --set demonstrations.solver.heuristic=sum --set demonstrations.solver.order=heuristic \
    --set context=640 --set count=800000
  evaluate threads-rounds 2 --children 2
  evaluate threads-rounds 4 --children 4
  done_with threads-rounds
  ;;
serial)
  sft serial-window four-window recipes/four.toml "${SERIAL[@]}" --set count=800000 \
    --set demonstrations.condition=window
  evaluate serial-window 1024 --method serial --window 1024
  evaluate serial-window 4096 --method serial --window 4096
  done_with serial-window
  ;;
*) echo "usage: $0 threads|rounds|serial" >&2; exit 2 ;;
esac
