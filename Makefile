SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help test lint fmt docs-check bench torture brokers-up brokers-down

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name does; do printf '%-14s %s\n' "$$name" "$$does"; done

test: ## set up what the tests need and run all checks and tests (ARGS goes to cargo test)
	@scripts/test $(ARGS)

lint: ## formatting, dependency rules, clippy
	cargo fmt --check
	scripts/cargo-deny check bans licenses sources
	cargo clippy --locked -- -D warnings
	cargo clippy --locked --all-targets --features failpoints -- -D warnings
	cargo clippy --locked --test torture --features failpoints -- -D warnings

fmt: ## format the code
	cargo fmt

docs-check: ## links and anchors in the documentation
	scripts/check-links

bench: ## measure; see docs/performance.md (ARGS: --quick, --only drain, --write ...)
	benches/run $(ARGS)

torture: ## every fault there is, on all three brokers; see docs/reliability.md (ARGS: --scenario ...)
	scripts/setup
	HOOKBRIDGE_TEST_DIR=$(CURDIR)/target/test-brokers cargo test --locked --test torture -- $(ARGS)

brokers-up: ## start RabbitMQ and Kafka (scripts/brokers env says where)
	@scripts/brokers up

brokers-down: ## stop them and remove their data
	@scripts/brokers down
