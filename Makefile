# Everything is built by cargo; this only names what one types.
CARGO ?= cargo
EXAMPLES = $(CARGO) $(1) --manifest-path examples/Cargo.toml --target-dir target
WORKSPACES := Cargo.toml examples/Cargo.toml bench/Cargo.toml fuzz/Cargo.toml

.PHONY: demo test servers format lint tests docs examples bench coverage example torture calls

# An orders API with a payment step behind the proxy; prints curl lines to try.
demo:
	$(CARGO) run --quiet --package retrysafe-cli -- demo $(ARGS)

# All that has to hold: format, lints, tests, doc tests, README, docs, examples.
test: servers format lint tests examples docs

# Redis, PostgreSQL, MariaDB, NATS and gRPC for Python for the tests: installs what is missing, or says how.
servers:
	@scripts/install-test-servers.sh

format:
	@for it in $(WORKSPACES); do echo "cargo fmt --check ($$it)"; $(CARGO) fmt --all --check --manifest-path $$it || exit 1; done

lint:
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	$(call EXAMPLES,clippy) --all-targets --locked -- -D warnings
	$(CARGO) check --manifest-path fuzz/Cargo.toml --target-dir target --locked

tests:
	$(CARGO) test --workspace --all-features --locked --no-fail-fast

# They run the binary, too. It is built as for the tests: by itself it would be built anew, with other features.
examples:
	$(CARGO) test --workspace --all-features --locked --no-run --quiet
	$(call EXAMPLES,test) --locked

# With the examples of the crates, for the same reason: what they depend on has been checked with their features.
docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --all-features --no-deps --locked --lib --examples

# The targets of docs/benchmarks.md, as ratios and counts from one run. The peer of P13 asks for a newer
# compiler than it needs.
bench: servers
	$(CARGO) build --release --locked --package retrysafe-cli
	$(CARGO) run --release --locked --ignore-rust-version --manifest-path bench/Cargo.toml -- $(ARGS)

# Line coverage of the whole workspace. The tool comes from crates.io.
coverage:
	$(CARGO) tarpaulin --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-tarpaulin
	$(CARGO) tarpaulin --workspace --engine ptrace --skip-clean --out Stdout --out Html --output-dir target/coverage $(ARGS)

# Kills services that move money, and their database, and audits the books. MODE is transactional,
# phases, which charges a card in the middle, or layer, which shows its hole. STORE is postgres, mysql,
# which is MariaDB, or sqlite.
KILLS ?= 2000
MODE ?= transactional
STORE ?= postgres
torture: servers
	$(CARGO) run --quiet --package retrysafe-sqlx --features failpoints,mysql,postgres --example torture -- $(KILLS) $(MODE) $(STORE)

# Calls through faults, to an Axum service and to the proxy: each executed once, none lost. `make test`
# makes fewer.
CALLS ?= 10000
calls:
	RETRYSAFE_TEST_CALLS=$(CALLS) $(CARGO) test --package retrysafe-client --test suite --locked faults:: -- --nocapture
	RETRYSAFE_TEST_CALLS=$(CALLS) $(CARGO) test --package retrysafe-cli --test suite --locked client:: -- --nocapture

# One example: make example NAME=axum-orders ARGS="--listen 127.0.0.1:3000"
example:
	@test -n "$(NAME)" || { echo 'which one? make example NAME=axum-orders' >&2; exit 2; }
	$(call EXAMPLES,run) --bin $(NAME) -- $(ARGS)
