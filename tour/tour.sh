#!/usr/bin/env bash
# The whole way from a text to an assistant that is graded, talked to and taken elsewhere.
#
#   make tour                 all of it: 4 min 30 s on two busy cores
#   TOUR_SHORT=1 make tour    the same commands with a few steps of training each
#
# Every command is shown before it runs and can be typed again by itself, from this project's folder
# with its environment active. It reads the texts in gpt2cli/bundled and writes into runs/tour*;
# the first command that fails ends it. A second tour begins afresh.
set -euo pipefail
unset GPT2_RUNS GPT2_MIRROR # the commands below name places and texts as they are without these
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # on a busy machine, threads that spin cost more than their work

step() { # a sentence, and the command that it is about
  printf '\n# %s\n$ %s\n' "$1" "$2"
  local began=$SECONDS code=0
  eval "$2" || code=$?
  if [ "$code" != 0 ]; then
    printf '\nThe tour ends here: exit code %s of\n  %s\n' "$code" "$2" >&2
    exit "$code"
  fi
  printf '# (%s s)\n' "$((SECONDS - began))"
}

texts=gpt2cli/bundled
few='' luck='--temperature 0'
if [ -n "${TOUR_SHORT:-}" ]; then # what has learned next to nothing says something only by chance
  few=' optim.steps=3 optim.warmup_steps=1 eval.every=3' luck='--temperature 1 --seed 1 -n 20'
fi

step 'What an earlier tour has left goes.' \
  'rm -rf runs/tour runs/tour-*'

step 'A story of 5,600 tokens becomes token files; a tenth of it is held out.' \
  "gpt2 prepare $texts/story.txt --out runs/tour-text --validation 0.1 --block 256"

step 'A GPT-2 of 7 million weights learns to write like it, from random ones.' \
  "gpt2 pretrain tour/tour.yaml$few"

step 'From there it learns to tell spam from other messages. The table is of messages that it has not seen.' \
  "gpt2 finetune-classify spam-tiny init=runs/tour data.source=$texts/messages.tsv optim.lr=3e-4 optim.steps=99 --name tour-spam$few"

step 'It is used.' \
  'gpt2 classify runs/tour-spam "URGENT! Your number has won a 500 gift card. Reply CLAIM before midnight" "Shall we have lunch on Friday?"'

step 'The story writer learns 174 answers by heart, then gives 21 others. So few teach it nothing of those: their loss rises.' \
  "gpt2 finetune-instruct instruct init=runs/tour data.source=$texts/instructions.json batch.micro_batch=16 optim.steps=800 optim.lr=2e-3 eval.every=800 eval.max_new_tokens=48 log.every=100 --name tour-assistant$few${few:+ eval.temperature=1 eval.max_new_tokens=12}"

# A judge is another language model: Ollama's llama3.2, or TOUR_JUDGE, where one answers.
judge=${TOUR_JUDGE:-llama3.2}
ollama=${OLLAMA_HOST:-127.0.0.1}
case $ollama in *:[0-9]*) ;; *) ollama=$ollama:11434 ;; esac
models=$(curl --silent --fail --max-time 3 --noproxy localhost,127.0.0.1 "$ollama/v1/models" || true)
if [[ $models == *"\"$judge"* ]]; then
  step "$judge grades the 21 answers." \
    "gpt2 judge runs/tour-assistant --ollama $judge"
else
  printf '\n# No %s answers at %s: what follows is no judge, but a program that counts shared words.\n' "$judge" "$ollama"
  printf '$ python tour/word_judge.py &\n'
  python tour/word_judge.py >runs/tour-judge.url &
  trap "kill $!" EXIT
  until [ -s runs/tour-judge.url ]; do
    sleep 0.1
    kill -0 $!
  done
  url=$(cat runs/tour-judge.url)
  echo "$url"
  step 'It scores the 21 answers. A language model in its place would say what they are worth.' \
    "gpt2 judge runs/tour-assistant --base-url $url --judge-model word-judge"
fi

step 'You talk to it. It was taught the first two answers, not the third; /clear, because it was taught no second turns.' \
  "printf '%s\\n' 'List three musical instruments that have strings.' /clear 'What is the capital of Portugal?' /clear 'What is the capital of Norway?' | gpt2 chat runs/tour-assistant $luck"

if python -c 'import gguf' 2>/dev/null; then
  step 'It is taken to llama.cpp and Ollama.' \
    'gpt2 convert runs/tour-assistant --to gguf --dtype q8_0 --out runs/tour-assistant.gguf'
else
  step 'It is taken to nanoGPT. With `pip install gguf` it would be GGUF, for llama.cpp and Ollama.' \
    'gpt2 convert runs/tour-assistant --to nanogpt --out runs/tour-assistant.pt'
fi

printf '\n# The tour took %s min %s s. What it has made lies in runs/tour*.\n' "$((SECONDS / 60))" "$((SECONDS % 60))"
