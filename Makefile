# Everything runs in .venv, which holds exactly what requirements.lock names, plus this package in editable form.
# Paths are relative throughout, so the checkout may lie in a folder whose name has spaces.

PYTHON ?= python3
ARGS ?=

VENV  := .venv
PY    := $(VENV)/bin/python
READY := $(VENV)/.ready
# -qq drops the progress bars and the chatter; errors still show. --no-compile halves the time: Python compiles on
# first import, and most of what comes along is never imported.
PIP   := -m pip --disable-pip-version-check install -qq --no-compile

# Only `make lock` uses these. torch is pinned by hand, because it decides the versions of much else, and with it the
# triton that a torch for GPUs asks for: `make lock TORCH=x.y.z TRITON=x.y.z` moves them.
TORCH   ?= $(shell sed -n 's/^torch==//p' requirements.lock)
X86     := sys_platform == 'linux' and platform_machine == 'x86_64'
TRITON  ?= $(shell sed -n 's/^triton==\([0-9.]*\).*/\1/p' requirements.lock)
LOCKING := build/lock

# Only `make parity` uses these: the other libraries must not decide the versions of what is in .venv.
PARITY       := .venv-parity
PARITY_READY := $(PARITY)/.ready
PEERS        := sae_lens dictionary_learning sparsify

.DEFAULT_GOAL := help
.PHONY: help quickstart test check parity campaign lint format lock clean

help:  ## print this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do \
		printf 'make %-11s %s\n' "$$name" "$$what"; done

quickstart: $(READY)  ## train and measure a real SAE on the bundled model (options: ARGS="--help")
	@$(VENV)/bin/saelab quickstart $(ARGS)

# Tests start many processes. Where the environment forbids Python to keep what it compiles, each would compile torch.
# Some wait for servers and time-outs: one worker more than processors.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
test: lint  ## lint, type-check and run the tests (options for pytest: ARGS="-k floors")
	PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint  ## what a minute allows: lint, types, floors, and from text to scores with a tiny model
	PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -m "not slow" tests/test_floors.py tests/test_tiny.py $(ARGS)

# A process for each library: they patch what they share. pytest's 5 says that ARGS chose none of its tests.
parity: $(PARITY_READY)  ## compare with the other SAE libraries, side by side (options for pytest: ARGS="-k topk")
	@for peer in $(PEERS); do \
		$(PARITY)/bin/python -m pytest parity/test_$$peer*.py $(ARGS) || test $$? = 5 || failed="$$failed $$peer"; \
	done; test -z "$$failed" || { echo "saelab: differs from:$$failed" >&2; exit 1; }

# Hours of random trials, so not a part of `make test`. Every one runs, whatever another found.
CAMPAIGNS := kills mutations families
campaign: $(READY)  ## random kills, mutated files, families of models (options: ARGS="--minutes 10 --seed 1")
	@for name in $(CAMPAIGNS); do \
		$(PY) -m campaigns.$$name $(ARGS) || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "saelab: failed:$$failed" >&2; exit 1; }

lint: $(READY)  ## ruff and mypy, changing nothing
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(PY) -m mypy

format: $(READY)  ## let ruff fix and format the code
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:  ## remove .venv, .venv-parity, caches and build output (runs and stores stay)
	rm -rf $(VENV) $(PARITY) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find saelab tests tools parity -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp appears only after everything is installed: an interrupted first install starts over (--clear),
# a changed lock updates in place.
$(READY): requirements.lock pyproject.toml
	$(check-python)
	@"$(PYTHON)" -m venv $(if $(wildcard $(READY)),,--clear) $(VENV)
	@echo "saelab: installing what requirements.lock names into $(VENV) (about a minute, plus the download) ..."
	@$(PY) $(PIP) -r requirements.lock
	@echo "saelab: installing the package itself ..."
	@$(PY) $(PIP) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "saelab: $(VENV) is ready"

# nnsight, which dictionary-learning wants, asks for torchvision; nothing here uses it, and one built for another kind of
# torch (CPU, CUDA) keeps transformers from loading, so it goes.
$(PARITY_READY): parity/requirements.txt pyproject.toml
	$(check-python)
	@"$(PYTHON)" -m venv $(if $(wildcard $(PARITY_READY)),,--clear) $(PARITY)
	@echo "saelab: installing the other libraries into $(PARITY) (some minutes) ..."
	@$(PARITY)/bin/python $(PIP) -r parity/requirements.txt
	@$(PARITY)/bin/python $(PIP) --no-build-isolation -e . -r parity/requirements.txt
	@$(PARITY)/bin/python -m pip --disable-pip-version-check uninstall -y -qq torchvision
	@touch $@
	@echo "saelab: $(PARITY) is ready"

# Run it with the oldest Python that saelab supports, so that every pin fits all of them. The GPU libraries are left
# out of the lock, but for triton: torch names its own exactly, and a machine without a GPU has none.
lock:  ## resolve all dependencies anew and write requirements.lock
	$(check-python)
	@"$(PYTHON)" -m venv --clear $(LOCKING)
	@echo "saelab: resolving with torch $(TORCH) (some minutes) ..."
	@$(LOCKING)/bin/python $(PIP) setuptools wheel "torch==$(TORCH)" "triton==$(TRITON); $(X86)"
	@$(LOCKING)/bin/python $(PIP) --no-build-isolation -e '.[dev]'
	@$(LOCKING)/bin/python -m pip freeze --all --exclude pip --exclude-editable > $(LOCKING)/frozen
	@{ sed -n '/^#/p' requirements.lock; \
	   sed -e '/^\(nvidia\|cuda\)/d' -e 's/^\(torch==[0-9.]*\)+.*/\1/' \
	       -e "s/^triton==.*/& ; $(X86)/" $(LOCKING)/frozen; } > $(LOCKING)/new
	@mv $(LOCKING)/new requirements.lock
	@rm -rf $(LOCKING)
	@echo "saelab: wrote requirements.lock"

define check-python
	@command -v "$(PYTHON)" >/dev/null || { echo "saelab: there is no '$(PYTHON)' here; \
	install Python 3.11 or newer, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "saelab: $(PYTHON) is \
	$$("$(PYTHON)" --version 2>&1), but 3.11 or newer is needed; say make PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "saelab: $(PYTHON) cannot make virtual \
	environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
endef
