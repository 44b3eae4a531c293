# One command each; every target does its own set-up. `make help` lists them.
#
#   PYTHON=/path/to/python3   the interpreter for .venv (3.11 or newer)
#   NGINX_BUILDS=DIR          use DIR/VERSION/sbin/nginx instead of building nginx from Debian's sources
#   DESTDIR= PREFIX=/usr/local SYSCONFDIR=/etc LOCALSTATEDIR=/var INTERPRETER=/usr/bin/python3
#                             where `make install` puts things, and what they run with
#   PYTEST_ARGS="-k upgrade"  arguments for pytest: one run with them, without the coverage gates,
#                             which a part of the tests cannot meet

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help venv nginx boxes check test test-pairs matrix misbehaviours soak demo run bench bench-lost bench-healthy bench-booted fuzz clean install uninstall deb

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

help:
	@echo 'make test    everything CI runs: style, types, tests on real nginx'
	@echo 'make test-pairs  the end-to-end tests between all pairs of versions (with NGINX_BUILDS, test does that)'
	@echo 'make matrix  every fault at every point of what the supervisor does, on real nginx (about 10 min);'
	@echo '             make test runs a third of it: MATRIX_SEED=N chooses another one'
	@echo 'make misbehaviours  thirty candidates that go wrong, each three times, and writes docs/misbehaviours.md'
	@echo '             (about 12 min; ROUNDS=N); make test runs a quarter of them (MATRIX_SEED=N)'
	@echo 'make demo    a live nginx is upgraded, then four bad builds are rolled back (about 30 s)'
	@echo 'make run     the supervisor in the foreground with a sample site, to try things by hand'
	@echo 'make bench   what the supervisor adds to the time of an upgrade; how soon it reacts; what a status costs'
	@echo 'make bench-healthy  200 healthy upgrades (ROUNDS=N) under load, none of which may be undone; 15 minutes'
	@echo 'make bench-lost  a million requests through upgrades, rollbacks and crashes (REQUESTS=N); some minutes'
	@echo 'make bench-booted  requests sent and failed under load in a booted systemd: deaths, restarts, packages (SUITE=trixie)'
	@echo 'make soak    random faults and upgrades, checked after each (SOAK_SECONDS=600, SOAK_SEED=N)'
	@echo 'make fuzz    the coverage-guided fuzzer: FUZZ_SECONDS=60 for each target, FUZZ_SEED=1'
	@echo 'make install, make uninstall   the programs, units and documents, for this machine (PREFIX, DESTDIR)'
	@echo 'make deb     the Debian package, in dist/'
	@echo 'make check   ruff and mypy only'
	@echo 'make venv    the virtual environment;  make nginx: the nginx builds (both done by the others)'
	@echo 'make clean   removes .venv and tool caches; the nginx builds stay in the cache folder'

venv: $(STAMP)
	@:

$(STAMP): pyproject.toml tools/make_venv.sh
	@tools/make_venv.sh

nginx: $(STAMP)
	@$(PY) -m tools.build_nginx

# What the tests in a booted systemd run in. SYSTEMD_TESTS=skip leaves those out, and says so.
boxes: $(STAMP)
	@$(PY) -m tests.booted.roots

check: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

# The pure core is covered whole, by its own tests; the gate on all of it counts every test once.
CORE := tests/core tests/engine
test: check nginx boxes
ifeq ($(strip $(PYTEST_ARGS)),)
	@rm -f .coverage .coverage.* .core-coverage
	@COVERAGE_FILE=.core-coverage $(VENV)/bin/pytest $(CORE) -q -n 2 --dist worksteal --cov --cov-branch --cov-report=
	@COVERAGE_FILE=.core-coverage $(VENV)/bin/coverage report --include='supervisor/core/*' --fail-under=100 --skip-covered
	@$(VENV)/bin/pytest $(CORE:%=--ignore=%) -n 3 --dist worksteal --cov --cov-branch --cov-report=
	@$(VENV)/bin/coverage combine -q --append .core-coverage
	@$(VENV)/bin/coverage report --fail-under=90 --skip-covered
else
	@$(VENV)/bin/pytest -n 4 --dist worksteal $(PYTEST_ARGS)
endif

# `make test` takes most of them from the oldest version to the newest, to end in ten minutes.
test-pairs: nginx
	@$(VENV)/bin/pytest tests/e2e --pairs all -n 4 --dist worksteal $(PYTEST_ARGS)

# Says its seed; the same one does the same deeds again.
SOAK_SECONDS := 600
soak: nginx
	@$(PY) -m tests.soak.runner --seconds $(SOAK_SECONDS) $(if $(SOAK_SEED),--seed $(SOAK_SEED))

matrix: nginx
	@$(VENV)/bin/pytest tests/e2e/test_matrix.py tests/e2e/test_races.py --matrix all -q -n 3 --dist worksteal $(PYTEST_ARGS)

misbehaviours: nginx
	@$(PY) -m tests.e2e.harness.misbehaviours --rounds $(or $(ROUNDS),3)

demo: nginx
	@$(PY) -m tools.demo

run: nginx
	@$(PY) -m tools.sample

bench: nginx
	@$(PY) -m bench.upgrade_overhead
	@$(PY) -m bench.crash_restart
	@$(PY) -m bench.reaction
	@$(PY) -m bench.cli_startup --installed
	@$(PY) -m bench.dependencies

bench-healthy: nginx
	@$(PY) -m bench.healthy_upgrades --rounds $(or $(ROUNDS),200)

# In a booted systemd; the watchdog's row takes its time-out, half a minute.
bench-booted: nginx
	@$(PY) -m bench.booted $(if $(SUITE),--suite $(SUITE))

REQUESTS := 1000000
bench-lost: nginx
	@$(PY) -m bench.nothing_lost --requests $(REQUESTS)

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
LOCALSTATEDIR ?= /var
INTERPRETER ?= /usr/bin/python3
PLACES = --destdir '$(DESTDIR)' --prefix '$(PREFIX)' --sysconfdir '$(SYSCONFDIR)' \
	--localstatedir '$(LOCALSTATEDIR)' --interpreter '$(INTERPRETER)'

# The units are for systemd to read: `systemctl daemon-reload`. See docs/installing.md.
install: $(STAMP)
	@$(PY) -m tools.install install $(PLACES)

uninstall: $(STAMP)
	@$(PY) -m tools.install uninstall $(PLACES)

# The same bytes each time for the same commit; SOURCE_DATE_EPOCH is its date unless it is set.
deb: $(STAMP)
	@$(PY) -m tools.make_deb

FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 1

# What it finds is in fuzz-found/; `make test` runs the same targets for a moment, without it too.
fuzz: $(STAMP)
	@$(PY) -c 'import atheris' 2>/dev/null || \
		$(PY) -m pip install --quiet --disable-pip-version-check --only-binary atheris -e '.[fuzz]' || \
		{ echo 'make fuzz: there is no atheris for this interpreter: use another one (PYTHON=...)' >&2; exit 1; }
	@$(PY) -m tests.fuzz.guided --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

clean:
	@rm -rf $(VENV) .venv.lock .mypy_cache .pytest_cache .ruff_cache .hypothesis fuzz-found .coverage .coverage.* .core-coverage htmlcov build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
