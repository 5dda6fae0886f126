#!/usr/bin/env bash
# Run 5: reinforcement learning on both. 05_grpo.sh threads|serial
source "$(dirname "$0")/common.sh"
case ${1:-} in
threads)
  grpo threads-rl threads
  evaluate threads-rl greedy
  evaluate threads-rl t1 --temperature 1 --seed 0
  done_with threads-rl
  ;;
serial)
  grpo serial-rl serial --set sampling.method=serial --set grpo.loss.kl=0.01
  evaluate serial-rl greedy --method serial
  evaluate serial-rl t1 --method serial --temperature 1 --seed 0
  done_with serial-rl
  ;;
*) echo "usage: $0 threads|serial" >&2; exit 2 ;;
esac
