.DEFAULT_GOAL := help
.PHONY: help test long fuzz bench lint fmt ci

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## all tests, in their short form
	go test -race -timeout 20m ./...

long: ## the long forms: random sequences against sqlstore, whole lives with 100 kills, 100,000 sends, fuzzing
	go test ./internal/storetest -run Differential -differential.seeds=10 -differential.steps=10000 -timeout 60m
	go test -race ./internal/life -life.rounds=100 -life.handovers=100 -life.away=30s -life.history=20000 -timeout 60m
	go test ./internal/life -run HandedOver -life.handovers=100 -life.jumps -timeout 60m
	go test ./pgstore -run 'TestP6OfTwo|TestP6WhatProcessesDo' -take.rounds=200 -scale.instances=100000 -timeout 60m
	go test -race ./internal/life -run KilledWithItsDatabase -life.rounds=200 -timeout 60m
	go test -race ./pgstore -run TestP4SendingAndReceiving -race.sends=100000 -timeout 60m
	go test ./internal/ceilings -ceilings.walks=10000000 -timeout 60m
	go test -race ./pgstore -run Whatever -chaos.rounds=2000 -timeout 0
	go test ./internal/soak -run TestSoak -soak.for=30m -soak.instances=200 -timeout 60m
	$(MAKE) fuzz

fuzz: ## each fuzz target for a minute
	@set -e; for package in $$(grep -rl '^func Fuzz' --include='*_test.go' . | xargs -n 1 dirname | sort -u); do \
		listed=$$(go test $$package -list '^Fuzz'); \
		for target in $$(echo "$$listed" | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			go test $$package -run '^$$' -fuzz "^$$target\$$" -fuzztime 1m; \
		done; \
	done

bench: ## benchmarks against sqlstore and maps; compare two runs with benchstat
	go test ./pgstore -run '^$$' -bench . -count 5

lint: ## golangci-lint
	golangci-lint run ./...

fmt: ## gofumpt and import order
	golangci-lint fmt

ci: ## what CI runs, on Debian
	.ci/run
