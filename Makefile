# `sudo make test` on a fresh Debian 12 or 13 needs nothing else; `make help` names the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The distribution's own interpreter: only it sees python3-nftables and python3-systemd.
PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# netbase has /etc/protocols, without which nft lists tcp as 6.
PACKAGES := ca-certificates netbase nftables python3-nftables python3-venv python3-systemd python3-yaml \
            iproute2 conntrack procps curl systemd-container
BUILDING := python3-hatchling
PACKAGING := debhelper dh-python dpkg-dev python3-pip lintian
# Whose rules the tests load beside ours; neither does anything before it is told to.
FIREWALLS := iptables ufw
# What makes system calls fail, and what stands between the daemon and its disk and clock, in tests/faults.
FAULTS := strace gcc libc6-dev
# The pictures of docs/performance.md, a backend of a peer, and what compiles the load generator.
PICTURES := python3-matplotlib iptables gcc libc6-dev
# What shows the page of `nfportctl report` in the tests: 64 MB, 20 s.
BROWSER := chromium-headless-shell fonts-dejavu-core
# Where `make install` puts programs, units and pages; the modules go to /opt/nfportd.
PREFIX := /usr/local
# For example: make test PYTEST_ARGS='-k hairpin -x'
PYTEST_ARGS :=
# A file is one worker's, for its tests share a laboratory. They wait more than they compute: on two processors four
# workers take two thirds of the time that two take.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile

# Engines are brought to a host by test-runtimes alone.
WITHOUT := --ignore=tests/runtimes --ignore=tests/recipes

# What the tests of container runtimes drive.
RUNTIMES := containerd runc crun conmon podman netavark aardvark-dns containernetworking-plugins busybox-static \
            iptables lxc systemd-container

# Installs those of some Debian packages that are missing.
define install
	@missing=$$(for p in $(1); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	fi
endef

.PHONY: help demo test test-runtimes test-trixie lint audit fuzz chaos soak run install uninstall deb deb-trixie
.PHONY: manual lock venv packages clean bench bench-data bench-control bench-scale bench-profile bench-page

help: ## this text
	@sed -nE 's/^([a-z-]+):.* ## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: venv ## publish ports of a small network made of namespaces, and show each connection (root)
	@$(BIN)/python -m tests.demo

test: PACKAGES += $(BUILDING) $(PACKAGING) $(FIREWALLS) $(FAULTS) $(BROWSER)
test: lint ## ruff, mypy and the test suite (root: it makes network namespaces)
	$(PYTEST) tests $(WITHOUT) -m 'not alone' $(PYTEST_ARGS) || [ $$? = 5 ] # 5: nothing of it was asked for
	$(BIN)/python -m pytest tests $(WITHOUT) -m alone $(PYTEST_ARGS) || [ $$? = 5 ]

test-runtimes: venv ## containerd, podman, nspawn and LXC publish ports here (root; installs them on this host)
	$(call install,$(RUNTIMES))
	$(PYTEST) tests/runtimes tests/recipes $(PYTEST_ARGS)

test-trixie: venv ## the test suite on Debian 13 userland: nft 1.1.3, Python 3.13 (root)
	tests/trixie.sh $(PYTEST_ARGS)

chaos: venv ## faults of all kinds under traffic and requests for ten minutes (root); CHAOS_SEED, CHAOS_SECONDS
	CHAOS_SECONDS=$${CHAOS_SECONDS:-600} $(BIN)/python -m pytest -x -s tests/chaos $(PYTEST_ARGS)

soak: venv ## a million changes: memory and descriptors must stay flat (root; half an hour)
	$(BIN)/python -m bench.soak

lint: venv ## ruff check, ruff format --check, mypy --strict, bandit
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/bandit -q -r nfportd -c pyproject.toml

audit: venv ## known vulnerabilities of what install and deb bring along (asks a service)
	@$(BIN)/pip-audit --strict --no-deps --disable-pip -r packaging/requirements.lock || { \
	    echo "make audit: where no vulnerability is named above, the service did not tell of each package, and"; \
	    echo "nothing is proved: run it where the service can be reached."; exit 1; }

FUZZ_SECONDS := 600
FUZZ_SEED :=
fuzz: venv ## all fuzzers with new seeds for FUZZ_SECONDS (root); FUZZ_SEED repeats a round
	$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS) $(FUZZ_SEED)

# Percent of the rounds of a bench; for example: make bench SHARE=10
SHARE := 100
bench bench-data bench-control bench-scale bench-profile bench-page: PACKAGES += $(PICTURES)
bench: venv ## nfportd beside its peers, all of it, and docs/performance.md from that (root); SHARE=10 is a short one
	$(BIN)/python -m bench $(SHARE)

bench-data: venv ## connections, packets, latency through many mappings (root)
	$(BIN)/python -m bench.data $(SHARE)

bench-control: venv ## a mapping added, changed, removed by API, command, drop-in, CNI; portmap and netavark (root)
	$(BIN)/python -m bench.control $(SHARE)

bench-scale: venv ## start, adoption, memory, repair with many mappings (root)
	$(BIN)/python -m bench.scale $(SHARE)

bench-profile: venv ## where the time of a change and of a start goes (root)
	$(BIN)/python -m bench.profile $(SHARE)

bench-page: venv ## docs/performance.md from what the benches have found
	$(BIN)/python -m bench.page

run: venv ## the daemon in the foreground with /etc/nfportd and /etc/nfportd.d (root)
	$(BIN)/nfportd

install: PACKAGES += $(BUILDING)
install: packages ## on this system: programs, units, example config, man pages, completions (root; DESTDIR, PREFIX)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/install.sh install

uninstall: ## stop nfportd and take away what install put there; changed config is kept (root)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/install.sh uninstall

deb: PACKAGES += $(BUILDING) $(PACKAGING)
deb: packages ## a Debian package for the release that this system runs, in build/deb
	@package=$$(packaging/deb.sh); lintian --allow-root "$$package"; echo "$$package"

deb-trixie: PACKAGES += $(PACKAGING)
deb-trixie: packages ## the same for Debian 13, built in a root made for that (root)
	@package=$$(packaging/deb.sh --trixie); lintian --allow-root "$$package"; echo "$$package"

manual: venv ## docs/man and the tables of the README, from the code and the texts
	$(BIN)/python docs/manual.py

lock: ## the versions that install and deb bring along, as new as pyproject.toml allows
	packaging/lock.sh

venv: $(VENV)/.stamp ## the virtual environment, and the Debian packages that it needs

$(VENV)/.stamp: pyproject.toml | packages
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

packages:
	$(call install,$(PACKAGES))

clean: ## remove what the other targets made
	rm -rf --one-file-system $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find nfportd tests bench -name __pycache__ -exec rm -rf {} +
