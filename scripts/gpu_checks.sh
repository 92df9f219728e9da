#!/usr/bin/env bash
# What only a GPU shows, on one GPU of 80 GB, with its numbers as JSON: bash scripts/gpu_checks.sh [FOLDER]
# Speed and utilization against the Trainer, the memory wall, resumed runs bit for bit, sharpness, ten minutes of
# large_batch_124m. About 45 minutes; CHECKS="speed wall resume sharpness long" selects parts. `pip install liger-kernel` adds
# the Trainer's best setting.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_checks}
mkdir -p "$out"
export CUBLAS_WORKSPACE_CONFIG=:4096:8 WANDB_MODE=disabled
launch="accelerate launch --config_file accelerate_configs/single_gpu.yaml"
common="recipe=large_batch_124m data=python_stdlib log.wandb=off"
checks=${CHECKS:-speed wall resume sharpness long}

for check in $checks; do
  case $check in
  speed)  # tokens/s, ratio with its 95 % interval
    for setting in "gpt2_124m 1024 32" "smollm2_135m 1024 32" "smollm2_135m 2048 16" "llama_360m 1024 16" "llama_360m 2048 8"; do
      read -r model length micro <<< "$setting"
      python scripts/bench.py pretrain $common model="$model" data.sequence_length="$length" batch.micro_max="$micro" \
        batch.start=null batch.ramp=null batch.size=128seq duration=100000seq repeats=10 steps=3 \
        out="$out/speed-$model-$length.json" || true
    done ;;
  wall)  # predicted by the line through the peaks, with and without activation checkpointing
    python scripts/probe.py $common out="$out/probe" format=json > "$out/probe.json"
    python scripts/probe.py $common model.activation_checkpointing=true out="$out/probe_recomputed" format=json \
      > "$out/probe_recomputed.json" ;;
  resume)  # the losses of two unbroken runs and of one that is killed and resumed, in bf16
    words="$common precision=bf16 duration=4000seq batch.start=null batch.ramp=null batch.size=16seq batch.micro_max=16"
    words="$words checkpoint.every=10% eval.full=false log.every=1step"
    for name in one two; do $launch scripts/pretrain.py $words output_dir="$out/$name"; done
    $launch scripts/pretrain.py $words output_dir="$out/killed" & job=$!
    until compgen -G "$out/killed/checkpoint-*" > /dev/null; do
      kill -0 $job || { echo "the run to be killed ended by itself" >&2; exit 1; }
      sleep 1
    done
    pkill -KILL -f "output_dir=$out/killed" || true
    wait $job || true
    $launch scripts/pretrain.py $words output_dir="$out/killed"
    sha256sum "$out"/{one,two,killed}/model.safetensors | tee "$out/resume.txt" ;;
  sharpness)  # of the model after 200 steps: time and peak memory
    $launch scripts/pretrain.py $common precision=bf16 duration=3200seq batch.start=null batch.ramp=null batch.size=16seq \
      batch.micro_max=16 eval.full=false output_dir="$out/short"
    /usr/bin/time -v python scripts/sharpness.py "$out/short" rows=16 micro_batch=2 seconds=30 out="$out/sharpness" \
      2>&1 | tee "$out/sharpness.txt" ;;
  long)  # stopped after ten minutes with a checkpoint; utilization and memory are in records.jsonl and on the page
    timeout --signal=TERM --kill-after=120 600 $launch scripts/pretrain.py $common model.compile=true \
      output_dir="$out/large_batch_124m" || true ;;
  *) echo "$check: none of speed, wall, resume, sharpness, long" >&2; exit 2 ;;
  esac
done
