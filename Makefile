# Sets up what it needs in $(VENV) first; nothing outside this folder and $(VENV) is touched.
# Another interpreter or place: make test PYTHON=python3.12 VENV=/tmp/kanmeta-venv
PYTHON ?= python3
VENV ?= .venv

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
# -qq: errors only
install := $(pip) install -qq --constraint constraints.txt --editable

.PHONY: test demo lint docs clean

test: $(VENV)/.installed $(VENV)/.installed-packages
	OMP_NUM_THREADS=1 $(python) -m pytest -n auto --dist loadfile

demo: $(VENV)/.installed
	$(python) -m recipes.demo

lint: $(VENV)/.installed-lint
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

# API reference from docstrings: build/docs/index.html
docs: $(VENV)/.installed-docs
	$(python) -m pdoc --docformat google --output-directory build/docs kanmeta kanmeta.plot

# What git does not track and make, pytest, mypy or ruff made. Results of recipes (runs/) stay.
clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find kanmeta adapters recipes tests -name __pycache__ -prune -exec rm -rf {} +

# Stamps: a second call costs nothing, a change of a file named here installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (PyTorch and its libraries: minutes and gigabytes the first time)"
	$(pip) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(install) '.[recipes,test]'
	@touch $@

$(VENV)/.installed-packages: tests/packages.txt $(VENV)/.installed
	@rm -rf $(VENV)/packages
	@grep -v '^#' tests/packages.txt | while read -r package more; do \
		$(pip) install -qq --no-deps --target "$(VENV)/packages/$${package%%==*}" \
			"$$package" $$more || exit 1; \
	done
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(install) '.[lint]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(install) '.[docs]'
	@touch $@
