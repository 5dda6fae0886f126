#!/usr/bin/env bash
# Run 7: the same searches in the paper's text, to part the gain of the text from that of threads.
# 07_paper.sh threads|serial
source "$(dirname "$0")/common.sh"
PAPER=("${SERIAL[@]:2}" --set demonstrations.text=paper --set demonstrations.telling=threads
  --set pairs=false --set largest_number=3000)
case ${1:-} in
threads)
  sft paper-threads paper recipes/four.toml "${PAPER[@]}" --set count=80000
  evaluate paper-threads greedy
  done_with paper-threads
  ;;
serial)
  sft paper-serial paper-serial recipes/four.toml "${PAPER[@]}" --set count=240000 \
    --set demonstrations.telling=serial
  evaluate paper-serial greedy --method serial
  done_with paper-serial
  ;;
*) echo "usage: $0 threads|serial" >&2; exit 2 ;;
esac
