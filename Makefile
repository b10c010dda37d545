# The daily commands. Each sets up what it needs first; ARGS is passed on:
#   make up ARGS="--port 6000"     make test ARGS="-k attachments"

BIN := .venv/bin
ARGS ?=

.PHONY: help up test check sim format bench bench-check docs kafka-up clean

help:            ## show this
	@sed -n 's/^\([a-z-]*\): *##* */\1\t/p' $(MAKEFILE_LIST)

up:              ## run the database
	@.ci/setup run
	@exec $(BIN)/divandb up $(ARGS)

test:            ## pass all tests
	@.ci/setup dev js deploy kafka
ifeq ($(ARGS),)
	$(BIN)/pytest -n 2 --dist worksteal -m "not alone"
	$(BIN)/pytest -m alone
else
	$(BIN)/pytest $(ARGS)
endif

check:           ## lint, types, layers, fast tests
	@.ci/setup dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q -m "not kafka" tests/unit tests/conformance $(ARGS)

sim:             ## search new seeds of the simulation for an hour: ARGS="--minutes 5"
	@.ci/setup dev
	$(BIN)/python -m tests.sim $(or $(ARGS),--minutes 60)

format:          ## put the source into its form
	@.ci/setup dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench:           ## measure beside other servers: ARGS="comfort", ARGS="growth --quick"
	@.ci/setup dev bench
	$(BIN)/python -m bench $(or $(ARGS),peers)

bench-check:     ## count instructions a request, and fail where they are 15% more than stored
	@.ci/setup dev count
	$(BIN)/python -m bench counters --check $(ARGS)

docs:            ## check that the docs say what the code does
	@.ci/setup dev
	$(BIN)/pytest -q tests/test_docs.py $(ARGS)

kafka-up:        ## run a Kafka broker to try --board kafka:// with
	@.ci/setup dev kafka
	@exec $(BIN)/python -m deploy.kafka $(ARGS)

clean:           ## remove what the commands above made, but no data
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf tests/system/js/node_modules deploy/kafka/jars
