# Querent. Every target makes .venv by itself when it is missing or older than the pins.
#   PYTHON=...       the Python 3.11 or 3.12 to make .venv with (default: the first one found)
#   TORCH_INDEX=...  an index to take torch and torchvision from; with one of CPU builds, no CUDA is downloaded
#   CONFIG=...       the campaign that `make demo` runs
#   DATA=...         a folder of your own images for `make up`

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PYTHON TORCH_INDEX DATA CONFIG
CONFIG ?=
PYTEST ?=
BIN := .venv/bin
RUN_EXTRAS := trainer,inference-cpu,demo
DEV_EXTRAS := $(RUN_EXTRAS),s3,postgres,dev
# The stamps say for which pins an environment was completed; an interrupted set-up leaves none.
RUN_VENV := .venv/.ready-run
DEV_VENV := .venv/.ready-dev

$(RUN_VENV): pyproject.toml constraints.txt
	@scripts/setup_venv.sh $(RUN_EXTRAS)
	@touch $@

$(DEV_VENV): pyproject.toml constraints.txt
	@scripts/setup_venv.sh $(DEV_EXTRAS)
	@touch $@ $(RUN_VENV)

##@ Use it
.PHONY: demo serve
demo: $(RUN_VENV) ## Run a whole campaign: Redis, inference, worker, rounds, report (no Docker)
	@exec $(BIN)/python -m services.demo run $(CONFIG)

serve: $(RUN_VENV) ## Serve the models of the demo until Ctrl-C (gRPC 8001, metrics 8002)
	@exec $(BIN)/python -m services.demo serve

##@ In containers
.PHONY: up up-gpu demo-compose down
up: ## Build and start the whole stack, wait until it is healthy, say what to do next (DATA=/folder of your own images)
	@scripts/stack.sh up

up-gpu: ## The same with an NVIDIA GPU
	@scripts/stack.sh up-gpu

demo-compose: ## Run the demo campaign inside the stack
	@scripts/stack.sh demo

down: ## Stop it within ten seconds; campaigns and models stay in their volumes
	@scripts/stack.sh down

##@ Work on it
.PHONY: test test-faults fuzz check format protos lock requirements
test: $(DEV_VENV) ## All tests, with real processes and the end-to-end run (PYTEST='-k name' to choose)
	$(BIN)/python -m pytest $(PYTEST)

check: $(DEV_VENV) ## Format, lint, types, import contracts, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

test-faults: $(DEV_VENV) ## Swaps, damaged versions and stops under load: ten minutes, best on an idle machine
	$(BIN)/python -m pytest -m faults -s tests/faults $(PYTEST)

fuzz: $(DEV_VENV) ## 5,000 bad requests of every kind to both APIs (FUZZ_SEED=n for others; 400 of them are in `make check`)
	FUZZ_REQUESTS=$${FUZZ_REQUESTS:-5000} $(BIN)/python -m pytest tests/fuzz -s $(PYTEST)

format: $(DEV_VENV) ## Format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(DEV_VENV) ## Generate services/common/pb from protos/
	scripts/protos.sh

lock: $(DEV_VENV) ## Resolve the dependencies anew into constraints.txt
	$(BIN)/python scripts/lock.py $(TORCH)

requirements: $(DEV_VENV) ## Write the images' pinned packages from constraints.txt
	$(BIN)/python scripts/requirements.py

##@ Measure it
.PHONY: bench bench-train bench-accuracy bench-heads bench-taps bench-serving bench-pool bench-strategies bench-al
bench: bench-train bench-accuracy bench-heads bench-taps bench-serving bench-pool bench-strategies bench-al ## Every benchmark

bench-accuracy: $(DEV_VENV) ## CIFAR-10, VGG16: random against margin, five seeds (needs the images and the weights)
	$(BIN)/python -m tests.bench.accuracy --csv docs/benchmarks/vgg16-accuracy.csv

bench-train: $(DEV_VENV) ## Fine-tuning on CIFAR-10: accuracy, speed, waiting for data (needs the images and the weights; some rows a GPU)
	$(BIN)/python -m tests.bench.train --csv docs/benchmarks/train.csv

bench-heads: $(DEV_VENV) ## CIFAR-10, two frozen backbones: every head at 100, 500 and 1,500 random labels (needs the images and the weights)
	$(BIN)/python -m tests.bench.heads --csv docs/benchmarks/heads.csv

bench-taps: $(DEV_VENV) ## CIFAR-10, two frozen backbones: which stages are worth it, with and without flip (needs the images and the weights)
	$(BIN)/python -m tests.bench.taps --csv docs/benchmarks/taps.csv

bench-serving: $(DEV_VENV) ## The service against onnxruntime in a plain loop, on one core (needs CIFAR-10, two cores)
	$(BIN)/python -m tests.bench.serving --csv docs/benchmarks/serving.csv

bench-pool: $(DEV_VENV) ## ScorePool over a million stored embeddings, and cold (3 GB of disk; cold needs CIFAR-10)
	$(BIN)/python -m tests.bench.bench_pool --csv docs/benchmarks/pool.csv

bench-strategies: $(DEV_VENV) ## One query of each strategy on 50,000 made-up embeddings: CPU seconds and memory
	$(BIN)/python -m tests.bench.strategies --csv docs/benchmarks/strategies.csv

bench-al: $(DEV_VENV) ## Active learning beside scikit-activeml and modAL: a query's cost, then accuracy on 15 paired seeds (hours; goes on where it was stopped; needs the images and the weights)
	$(BIN)/python -m tests.bench.al_query --csv docs/benchmarks/al-query.csv
	$(BIN)/python -m tests.bench.al_accuracy --csv docs/benchmarks/al-accuracy.csv --plot docs/images/al-curves.png

##@ Tidy up
.PHONY: clean clean-state help
clean: ## Delete .venv, caches and build output; campaigns and models stay
	rm -rf .venv build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find services tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

clean-state: ## Delete .querent: every campaign, model version, embedding and report of this checkout
	rm -rf .querent

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
