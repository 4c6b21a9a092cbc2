# The project's tasks. `make help` lists them; each fetches what it needs by deploy/setup.sh first.

CARGO ?= cargo
# The profile that `make demo` builds with: `dev` builds sooner, `release` tags faster.
DEMO_PROFILE ?= release
# Arguments of criterion, for `make bench`: the name of a stage, for instance. Those of `make bench-pipeline`,
# `make bench-delivery` and `make bench-scale`: --help.
BENCH ?=
# For `make faults`: how many seeds, or which: `7,12`.
SEEDS ?= 20
# For `make pressure`: how long the overload lasts.
SECONDS ?= 600
# For `make soak`: how many seconds.
SOAK ?= 1200
# For `make rollouts`: how many in a row.
ROLLOUTS ?= 100
# For `make backfill`: how many records, and a text, a document a line.
RECORDS ?= 1000000
TEXT ?=
# For `make models`: the folder of the corpora that trainer/configs/vi-tagger.toml names, the tokenizer, the folder of
# the run.
DATA ?=
TOKENIZER ?= models/vi-tagger/0.1.0/tokenizer.json
RUN ?= target/model

# Where deploy/setup.sh puts its parts, and where the worker, the tests and torch-sys look for them.
VITAG_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vitag
override VITAG_CACHE := $(abspath $(VITAG_CACHE))
LIBTORCH ?= $(VITAG_CACHE)/libtorch/2.13.0/torch
export VITAG_CACHE LIBTORCH

SETUP := deploy/setup.sh
CARGO_DENY := $(VITAG_CACHE)/tools/bin/cargo-deny
TRAINER := $(CARGO) run --release --package vitag-trainer --

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test faults pressure soak rollouts lint audit bench bench-pipeline bench-delivery bench-scale bench-step backfill formats models doc clean

help: ## Lists the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Fetches everything that building, testing and linting need
	$(SETUP) build runtime training broker tools

demo: ## Tags a stream of Vietnamese texts, in one process, with nothing to set up
	$(SETUP) build runtime
	$(CARGO) run --profile $(DEMO_PROFILE) -- demo

test: ## Tests the worker and the trainer, against a real broker, ONNX Runtime and libtorch
	$(SETUP) build runtime training broker
	$(CARGO) test --no-fail-fast --features failpoints
	GOMP_SPINCOUNT=0 $(CARGO) test --no-fail-fast --package vitag-trainer

faults: ## Kills, freezes and cuts off workers and the broker, by the plans of SEEDS; writes target/faults/report.md
	$(SETUP) build runtime broker
	VITAG_FAULT_SEEDS=$(SEEDS) $(CARGO) test --features failpoints --test faults every_record -- --nocapture

lint: ## Checks format, lints, documentation, and the licences and sources of dependencies
	$(SETUP) build training tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets --features failpoints -- -D warnings
	$(CARGO) clippy --lib --no-default-features -- -D warnings
	$(CARGO) clippy --all-targets --package vitag-trainer -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --package vitag
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --package vitag-trainer
	$(CARGO_DENY) --log-level error check bans licenses sources

audit: ## Checks dependencies for known vulnerabilities; needs the advisory database on GitHub
	$(SETUP) tools
	$(CARGO_DENY) check advisories

bench: ## Measures the stages of the worker; arguments in BENCH
	$(SETUP) build runtime
	$(CARGO) bench --bench stages -- $(BENCH)

bench-pipeline: ## Measures the worker, file to file, beside the bare model; arguments of `vitag bench` in BENCH
	$(SETUP) build runtime
	$(CARGO) run --release -- bench ceiling pipeline latency $(BENCH)

bench-step: ## Measures a step of pretraining beside one in Python; PYTHON has torch and transformers
	$(SETUP) build training
	$(CARGO) bench --package vitag-trainer --bench step

bench-delivery: ## Measures the cost of delivery exactly once, and recovery; arguments in BENCH
	$(SETUP) build runtime broker
	$(CARGO) bench --bench delivery -- $(BENCH)

bench-scale: ## Measures workers and partitions on one machine; arguments in BENCH
	$(SETUP) build runtime broker
	$(CARGO) bench --bench scale -- $(BENCH)

pressure: ## Overloads a worker for SECONDS and holds it to its memory
	$(SETUP) build runtime broker
	PRESSURE_SECONDS=$(SECONDS) $(CARGO) test --features failpoints --test pressure -- --nocapture under_ten_times

soak: ## Keeps a worker at full load for SOAK seconds, and holds its memory to where it was
	$(SETUP) build runtime broker
	SOAK_SECONDS=$(SOAK) $(CARGO) test --release --features failpoints --test soak -- --nocapture

rollouts: ## Rolls two models out in turn, ROLLOUTS times, to three workers under load, and kills workers meanwhile
	$(SETUP) build runtime broker
	VITAG_ROLLOUTS=$(ROLLOUTS) $(CARGO) test --release --features failpoints --test rollout -- --nocapture --test-threads 1 no_record_suffers killed_workers

backfill: ## Backfills RECORDS of a growing topic under kills, and the lines of TEXT to Parquet and back
	$(SETUP) build runtime broker
	BACKFILL_RECORDS=$(RECORDS) $(CARGO) test --release --features failpoints --test backfill -- --nocapture --test-threads 1 again_and_again two_processes_do
	BACKFILL_TEXT=$(abspath $(TEXT)) $(CARGO) test --release --features failpoints --test backfill_files -- --nocapture to_parquet_and_back

formats: ## Reads what `vitag convert` writes with the tools that it is for; backfills and publishes to a server of S3
	$(SETUP) build runtime
	$(CARGO) build
	python3 -m venv $(VITAG_CACHE)/formats
	$(VITAG_CACHE)/formats/bin/pip install --quiet -r tests/formats/requirements.txt
	target/debug/vitag tag tests/formats/documents.jsonl > target/annotations.jsonl
	$(VITAG_CACHE)/formats/bin/python tests/formats/check.py target/debug/vitag target/annotations.jsonl
	$(VITAG_CACHE)/formats/bin/python tests/formats/s3.py target/debug/vitag

models: ## Trains the bundled model anew, from the corpora in DATA
	@test -d "$(DATA)" || { echo "usage: make models DATA=FOLDER [TOKENIZER=FILE] [RUN=FOLDER]" >&2; exit 2; }
	$(SETUP) build runtime training
	$(TRAINER) --threads 1 finetune --config trainer/configs/vi-tagger.toml --data $(DATA) --tokenizer $(TOKENIZER) --out $(RUN)
	$(TRAINER) --threads 1 evaluate --run $(RUN) --data $(DATA)
	$(TRAINER) export --run $(RUN) --texts trainer/configs/golden.txt --models models --int8 --data $(DATA)

doc: ## Builds the documentation of the crates into target/doc
	$(SETUP) build training
	$(CARGO) doc --no-deps --package vitag
	$(CARGO) doc --no-deps --package vitag-trainer

clean: ## Removes what was built; the fetched parts stay in VITAG_CACHE
	$(CARGO) clean
