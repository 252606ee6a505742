# Every line calls something one could type. Variables: CLUSTER (lab cluster, default demo), FORMAT=json (status).
CLUSTER ?= demo
PATH := $(CURDIR)/.venv/bin:$(PATH)
export PATH
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.collections

.PHONY: up down status test lint unit js sanity e2e long bench bench-turns bench-balancer

up: ## from nothing to a running cluster on this machine
	@lab/bootstrap
	@python -m lab up $(CLUSTER)

status: ## what runs where, and how it is
	@python -m lab status $(CLUSTER) $(if $(filter json,$(FORMAT)),--json)

down: ## remove the cluster, nothing else
	@python -m lab destroy $(CLUSTER)

test: ## everything that CI runs
	@lab/bootstrap
	@tests/run

lint unit js sanity e2e long: ## one part of `make test`; long, which is none: every fault, and all of Redis
	@lab/bootstrap
	@tests/run $@

bench: ## seconds of `make up` from nothing and of a second site.yml, and the number of tasks
	@lab/bootstrap
	@python -m lab bench bench

bench-turns: ## ratios: a turn with and without the plugin, turns a second with one and with all replicas; needs a cluster that is up
	@python -m tests.bench $(CLUSTER)

bench-balancer: ## latency and requests a second of a gateway alone, behind each engine and behind the article's nginx; needs a cluster that is up
	@lab/bootstrap
	@python -m tests.bench.balancer $(CLUSTER)
