# make demo   the four demo releases through a release check      make test     everything that has to hold
# make quick  export, and the notebooks and tests you touched     make style    how the house is written, in one table
# make lab    JupyterLab on the tutorials                         make lessons  what lessons show, stored in them
# make docs   the documentation site in _docs                     make portable what computes, under other instruction sets
# make export notebooks -> package, sidebar, README               make slow     portable, and studies: kill -9 at random moments
# make format one formatter over everything                       make bench    one benchmark: make bench NAME=gate_error_rates
# make fuzz   ten thousand damaged files, each refused or harmless
# make browser  every board in a real JupyterLab and a real Chromium, which it installs where there is none
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_OFFLINE := 1
export OMP_NUM_THREADS ?= 1
PYTHON ?= python3
WORKERS ?= 2
READY := .venv/ready

.PHONY: demo example test quick slow portable style format lessons lab docs bench fuzz browser export
$(READY): constraints.txt settings.ini setup.py
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --upgrade "pip>=24"
	.venv/bin/pip install -q torch==$$(sed -n 's/^torch==//p' constraints.txt)
	PYTHONWARNINGS=ignore .venv/bin/pip install -q -c constraints.txt -e ".[all]"
	touch $(READY)

demo: $(READY)
	python -m interpkit.gate.demo

example: $(READY)
	python -m interpkit.gate.demo --keep

test: $(READY)
	bash tests/run.sh

quick: $(READY)
	bash tests/run.sh quick

slow: $(READY) portable fuzz
	python -m pytest -m slow tests

portable: $(READY)
	bash tools/portable.sh

style: $(READY)
	python tools/style.py

format: $(READY)
	ruff format . && ruff check --fix . && $(MAKE) export

lessons: $(READY)
	python tools/lessons.py --workers $(WORKERS) && nbdev-clean && python tools/docs/floors.py

lab: $(READY)
	cd nbs/tutorials && jupyter lab 00_first_check.ipynb

docs: $(READY)
	python tools/docs/docs.py

bench: $(READY)
	cd nbs/benchmarks && papermill $(NAME).ipynb $${TMPDIR:-/tmp}/$(NAME).ipynb -p full True -k python3

fuzz: $(READY)
	$(MAKE) bench NAME=fuzz

browser: $(READY)
	command -v chromium chromium-browser google-chrome > /dev/null || python -m playwright install chromium
	python -m pytest -m browser tests

export: $(READY)
	nbdev-export && nbdev-clean && python tools/docs/floors.py
