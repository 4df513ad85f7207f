# make demo     installs what is missing, builds the reference draft, compares it, ends by itself
# make test     installs what is missing, runs the tests (but for test-deploy and test-clients)
# make serve    keeps the demo's pair served on http://127.0.0.1:8000
# make compiled  that pair measured with compiled engines, which are twice as fast (the first start takes a minute) → build/reference-compiled/pair
# make results  the comparison on all held-out prompts (PER_KIND=50: on a seeded sample) → benchmarks/reference.json, RESULTS.md
# make results-draft  the levers side by side, and the draft beside other methods → benchmarks/draft.json, RESULTS.md
# make results-floor  the last part of that alone: the pair where many share the engine → benchmarks/floor.json, RESULTS.md
# make results-three-systems  CFSP, NutePrune and self-data distillation beside their baselines (QUICK=1: ten minutes;
#                             FRESH=1: nothing from the published file, hours) → benchmarks/three_systems.json, RESULTS.md
# make bench-gateway  the gateway's overhead beside nginx, smg and LiteLLM, then its promises (20 minutes)
#                     → benchmarks/gateway.json, RESULTS.md
# make loadtest  plain and draft of the demo's pair under load, beside each other → build/loadtest/reference.json, .html
# make results-loadtest  that, and its table → benchmarks/loadtest.json, RESULTS.md
# make test-deploy  the stack of compose.yaml on a real Docker engine (as root on Debian it installs and starts one)
# make results-deploy  that, and its times → benchmarks/deploy.json, RESULTS.md
# make test-clients  openai, langchain-openai, litellm and curl, unchanged, against the gateway (PAIR=FOLDER: on a real engine)
# make check    ruff, mypy, import contract, hadolint

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EVALUATION_STAMP := $(VENV)/.installed-evaluation
DEV_STAMP := $(VENV)/.installed-dev
LOADTEST_STAMP := $(VENV)/.installed-loadtest
BUILD := build/reference
PROMPTS := reference/prompts

export HF_HUB_OFFLINE := 1
# Every engine imports torch and vLLM: in half the time once their bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE
# Intel's OpenMP (a pinned package) makes training and the engine faster on x86; absent elsewhere.
PRELOAD = LD_PRELOAD="$(wildcard $(CURDIR)/$(VENV)/lib/libiomp5.so)"
RUN = $(PRELOAD) $(BIN)/understudy
PIP = $(BIN)/python -m pip install --quiet --no-compile --no-deps

.PHONY: demo test test-build test-serving serve compiled results results-draft results-floor results-three-systems bench-gateway \
	loadtest results-loadtest test-deploy results-deploy test-clients check setup setup-dev setup-suffix setup-evaluation setup-loadtest clean

demo: setup
	$(RUN) build recipes/reference.yaml
	$(RUN) compare $(BUILD)/pair $(PROMPTS)/heldout.jsonl --training-prompts $(PROMPTS)/train.jsonl \
		--out $(BUILD)/comparison.json \
		--set prompts_per_kind=6 --set max_tokens=48 --set repeats=1 --set block_size=1 --set waves=1

serve: setup
	$(RUN) build recipes/reference.yaml
	$(RUN) serve $(BUILD)/pair

# With compiled engines plain decoding is as fast as it gets here; the first start compiles for a minute.
COMPILED := build/reference-compiled

compiled: setup
	$(RUN) build recipes/reference.yaml
	$(RUN) measure reference/target $(BUILD)/draft $(PROMPTS)/validation.jsonl --out $(COMPILED)/measured \
		--set enforce_eager=false --set prompts_per_kind=12 --set max_tokens=48 --set repeats=1 --set max_model_len=512 \
		--set 'concurrencies=[1, 2, 4, 8, 16]'
	$(RUN) choose reference/target $(BUILD)/draft $(COMPILED)/measured --name reference --out $(COMPILED)/pair

results: compiled
	$(RUN) compare $(COMPILED)/pair $(PROMPTS)/heldout.jsonl --training-prompts $(PROMPTS)/train.jsonl \
		--out benchmarks/reference.json --set max_tokens=48 --set repeats=1 --set block_size=4 \
		$(if $(PER_KIND),--set prompts_per_kind=$(PER_KIND))
	$(BIN)/python -m benchmarks.render

LEVERS := build/levers
# What the reference build's draft is trained with: the others beside it get as much.
AS_LONG := --set max_seconds=240 --set tokens=6000000 --set batch_tokens=2048 --set learning_rate=0.02 --set adam_learning_rate=0.004
COMPARED := $(PROMPTS)/heldout.jsonl --training-prompts $(PROMPTS)/train.jsonl \
	--set prompts_per_kind=24 --set max_tokens=48 --set repeats=1 --set block_size=12

results-draft: setup-suffix compiled
	$(RUN) sweep recipes/levers.yaml
	$(RUN) recover reference/target $(BUILD)/pruned $(BUILD)/data --out $(LEVERS)/sibling $(AS_LONG) --set from_scratch=true
	$(RUN) recover reference/target $(BUILD)/pruned $(BUILD)/data --out $(LEVERS)/in-one-pass $(AS_LONG) --set parallel_tokens=4
	$(RUN) compare $(COMPILED)/pair $(COMPARED) --out $(LEVERS)/comparison.json \
		--set 'drafts={recipe: $(LEVERS)/drafts/recipe, sibling: $(LEVERS)/sibling, draft_parallel: $(LEVERS)/in-one-pass, draft_greedy: $(BUILD)/draft}' \
		--set 'concurrencies=[1, 2, 4, 8, 16]' --set 'rates=[3]'
	$(RUN) compare $(COMPILED)/pair $(COMPARED) --out $(LEVERS)/shapes.json --set 'concurrencies=[1]' \
		--set 'drafts={one_layer: $(LEVERS)/drafts/one-layer-by-any-score, two_layers: $(LEVERS)/drafts/two-by-greedy-kl, three_layers: $(LEVERS)/drafts/three-by-block-influence, four_layers: $(LEVERS)/drafts/recipe, eight_layers: $(LEVERS)/drafts/eight-evenly-spaced, half_as_wide: $(LEVERS)/drafts/half-as-wide, draft_parallel: $(LEVERS)/drafts/in-one-pass}'
	$(RUN) compare $(COMPILED)/pair $(COMPARED) --out $(LEVERS)/long.json --set 'concurrencies=[1]' --set 'temperatures=[0]' \
		--set max_tokens=160
	$(BIN)/python -m benchmarks.draft recipes/levers.yaml $(BUILD) $(COMPILED)/measured \
		$(foreach part,sweep comparison shapes long,$(LEVERS)/$(part).json)
	$(PRELOAD) $(BIN)/python -m benchmarks.floor $(COMPILED)/pair $(PROMPTS)/heldout.jsonl
	$(BIN)/python -m benchmarks.render

results-floor: compiled
	$(PRELOAD) $(BIN)/python -m benchmarks.floor $(COMPILED)/pair $(PROMPTS)/heldout.jsonl
	$(BIN)/python -m benchmarks.render

results-three-systems: setup-evaluation
	$(PRELOAD) $(BIN)/python -m benchmarks.three_systems $(if $(QUICK),--quick) $(if $(FRESH),--fresh); code=$$?; $(BIN)/python -m benchmarks.render; exit $$code

# Suffix decoding is built from source and needs a C++ compiler; a comparison without it leaves it out and says so.
setup-suffix: setup
	-$(BIN)/python -c 'import arctic_inference' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps arctic-inference==0.1.1

# Each proxy in a throw-away environment under build/bench-gateway; on loopback only. SHORT=1: to see that it works.
bench-gateway: setup
	$(BIN)/python -m benchmarks.gateway $(if $(SHORT),--short --out build/bench-gateway/short.json)
	$(BIN)/python -m benchmarks.gateway_promises $(if $(SHORT),--quick --out build/bench-gateway/short.json)
	$(if $(SHORT),,$(BIN)/python -m benchmarks.render)

# FAIL_IF='goodput<0.9': ends with an error if so.
loadtest: setup-loadtest
	$(RUN) build recipes/reference.yaml
	$(RUN) loadtest $(BUILD)/pair --config recipes/loadtest.yaml --out build/loadtest/reference.json $(if $(FAIL_IF),--fail-if '$(FAIL_IF)')

results-loadtest: loadtest
	cp build/loadtest/reference.json benchmarks/loadtest.json
	$(BIN)/python -m benchmarks.render

test: setup-dev
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile tests/architecture tests/unit
	$(MAKE) --no-print-directory --jobs=2 test-build test-serving

# An engine's start keeps one core busy: the tests that build a pair and those that serve one run beside each other.
test-build: setup-dev
	$(BIN)/python -m pytest --durations=4 tests/integration/test_build.py

test-serving: setup-dev
	$(BIN)/python -m pytest --durations=4 --ignore=tests/integration/test_build.py tests/integration

# Not part of `make test`: it installs packages of the system, builds three images and starts five containers. What it measures is printed and
# left in build/deploy/figures.json; wheels and base system are kept there for the next run.
test-deploy: setup-dev
	$(BIN)/python -m pytest -s -rs --durations=8 tests/deploy

results-deploy: test-deploy
	cp build/deploy/figures.json benchmarks/deploy.json
	$(BIN)/python -m benchmarks.render

# Not part of `make test`: it installs the clients, each in an environment of its own under build/clients.
test-clients: setup-dev
	$(if $(PAIR),CLIENTS_PAIR=$(PAIR)) $(BIN)/python -m pytest -rA --durations=5 tests/clients

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/*.Dockerfile

setup: $(STAMP)
setup-evaluation: $(EVALUATION_STAMP)
setup-dev: $(DEV_STAMP)
setup-loadtest: $(LOADTEST_STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 is needed, found %d.%d; give PYTHON=/path/to/python3.11" % sys.version_info[:2]) if sys.version_info[:2] != (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# torch comes by itself, the CPU build where the index has one, and beside the rest: unpacking keeps one core busy.
$(STAMP): $(BIN)/python requirements/cpu.txt pyproject.toml
	{ $(PIP) torch==2.13.0+cpu 2>/dev/null || $(PIP) torch==2.13.0; } & torch=$$!; \
		$(PIP) --requirement requirements/cpu.txt; rest=$$?; wait $$torch && exit $$rest
	$(PIP) --no-build-isolation --editable .
	touch $@

$(DEV_STAMP): $(EVALUATION_STAMP) $(LOADTEST_STAMP) requirements/dev.txt
	$(PIP) --requirement requirements/dev.txt
	touch $@

$(EVALUATION_STAMP): $(STAMP) requirements/evaluation.txt
	$(PIP) --requirement requirements/evaluation.txt
	touch $@

$(LOADTEST_STAMP): $(STAMP) requirements/loadtest.txt
	$(PIP) --requirement requirements/loadtest.txt
	touch $@

clean:
	rm -rf build
