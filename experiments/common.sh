# What the runs of docs/experiments.md share; sourced, not run.
#
#   OUT       what is kept of a run: checkpoint in bfloat16, metrics, figures   (results)
#   IN        where runs find the checkpoints of those before them              (OUT)
#   WORK      data, states and traces; keep it to go on from there              (runs/queue)
#   MINUTES   a run stops after so many, with code 75; the same command goes on (9)
#   STEPS     of supervised training, in place of the recipe's
#   COUNT     problems of an evaluation                                         (1000)
#   ENGINE    what decodes: 512 threads at a time, with keys and values of a million tokens
#   PYTHON    interpreter with the dependencies                                 (python)
#   REHEARSE  1: the same commands at sizes that take seconds on a CPU          (0)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-results} WORK=${WORK:-runs/queue} MINUTES=${MINUTES:-9} PYTHON=${PYTHON:-python}
IN=${IN:-$OUT}
ENGINE=${ENGINE:-embedded://?max_batch=512&max_batch_tokens=8192&kv_gib=16}
COUNT=${COUNT:-1000} TINY_SFT=() TINY_RL=() TINY_BENCH=()
if [ "${REHEARSE:-0}" = 1 ]; then
  COUNT=2
  network=()
  for value in hidden_size=32 intermediate_size=64 num_hidden_layers=1 num_attention_heads=2 \
    num_key_value_heads=2 head_dim=16; do network+=(--set "network.$value"); done
  TINY_BENCH=("${network[@]}" --set sft.rows=1 --set context=512)
  TINY_SFT=("${TINY_BENCH[@]}" --set count=20 --set held_out=10 --set sft.steps=2
    --set sft.eval_batches=1)
  TINY_RL=(--set grpo.steps=1 --set grpo.prompts=1 --set grpo.group=2 --set validation=1)
fi

apr() { "$PYTHON" -m apr "$@"; }

# The same searches told by one thread, in the window of the paper.
SERIAL=(--set demonstrations.telling=serial --set context=4096 --set sft.row_length=4096
  --set sft.rows=32)

seconds_left() { echo $((MINUTES * 60 > SECONDS ? MINUTES * 60 - SECONDS : 0)); }

out_of_time() {
  echo "not done yet: give the same command again to go on" >&2
  exit 75
}

# within COMMAND...: what cannot stop by itself, cut off when the time is over.
within() {
  local left code=0
  left=$(seconds_left)
  [ "$left" -gt 0 ] || out_of_time
  timeout --signal=INT --kill-after=20 "$left" "$@" || code=$?
  [ "$code" != 124 ] && [ "$code" != 137 ] || out_of_time
  return "$code"
}

# once FILE COMMAND...: what COMMAND prints, in FILE, unless it is there from the same COMMAND.
once() {
  local file=$1 command
  shift
  printf -v command '%q ' "$@"
  if [ ! -s "$file" ] || [ "$(cat "$file.command")" != "$command" ]; then
    within "$@" >"$file.tmp"
    echo "$command" >"$file.command"
    mv "$file.tmp" "$file"
  fi
}

# trained NAME VERB ARGUMENTS...: run `apr sft` or `apr grpo` to its end, and keep what came of it.
trained() {
  local name=$1 verb=$2 code=0 run=$WORK/$1
  shift 2
  mkdir -p "$OUT/$name"
  # What is done already takes no time, and a run of other settings is refused.
  apr "$verb" "$@" --out "$run" --minutes "$(awk "BEGIN {print $(seconds_left) / 60}")" || code=$?
  cp "$run"/{recipe.json,metrics.jsonl,timings.jsonl} "$OUT/$name" || true
  [ "$code" = 0 ] || exit "$code"
  apr export "$run/checkpoint" "$OUT/$name/checkpoint"
}

# sft NAME DATA RECIPE [--set KEY=VALUE]...
sft() {
  local name=$1 data=$2 recipe=$3
  shift 3
  trained "$name" sft "$recipe" --data "$WORK/data/$data" \
    ${STEPS:+--set "sft.steps=$STEPS"} "$@" "${TINY_SFT[@]}"
}

# grpo NAME FROM [--set KEY=VALUE]...
grpo() {
  local name=$1 from=$2
  shift 2
  trained "$name" grpo recipes/grpo-four.toml --set "checkpoint=$IN/$from/checkpoint" "$@" \
    "${TINY_RL[@]}"
}

# evaluate NAME WHAT FLAGS...: unseen problems; the figures in OUT, the traces in WORK.
evaluate() {
  local name=$1 what=$2 file=$WORK/$1/eval-$2.json
  shift 2
  once "$file" "$PYTHON" -m apr eval "$OUT/$name/checkpoint" --count "$COUNT" --concurrency 512 \
    --engine "$ENGINE" --json --force --out "$WORK/$name/eval-$what.jsonl" "$@"
  cp "$file" "$OUT/$name"
  cat "$file"
}

# done_with NAME: what was kept is small enough to be kept.
done_with() {
  local large
  large=$(find "$OUT/$1" -type f -size +15M)
  [ -z "$large" ] || { echo "too large to keep: $large" >&2; exit 1; }
  [ "$(du -sb "$OUT/$1" | cut -f1)" -le 64000000 ] || { echo "$OUT/$1 exceeds 64 MB" >&2; exit 1; }
  echo "done: $OUT/$1"
}
