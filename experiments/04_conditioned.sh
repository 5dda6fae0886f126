#!/usr/bin/env bash
# Run 4: both conditioned on a budget. 04_conditioned.sh threads|serial
source "$(dirname "$0")/common.sh"
case ${1:-} in
threads)
  sft threads-children four-children recipes/four.toml --set demonstrations.condition=children \
    --set "demonstrations.solver.beam=[1,24]"
  evaluate threads-children 6 --children 6
  evaluate threads-children 18 --children 18
  done_with threads-children
  ;;
serial)
  sft serial-window four-window recipes/four.toml "${SERIAL[@]}" --set count=800000 \
    --set demonstrations.condition=window
  evaluate serial-window 1024 --method serial --window 1024
  evaluate serial-window 4096 --method serial --window 4096
  done_with serial-window
  ;;
*) echo "usage: $0 threads|serial" >&2; exit 2 ;;
esac
