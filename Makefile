# make demo   the four demo releases through a release check      make test   everything that has to hold
# make quick  export, and the notebooks and tests you touched     make lab    JupyterLab on the tutorials
# make docs   the documentation site in _docs                     make bench  one benchmark: make bench NAME=gate_error_rates
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_OFFLINE := 1
export OMP_NUM_THREADS ?= 1
PYTHON ?= python3
WORKERS ?= 2
READY := .venv/ready

.PHONY: demo test quick lab docs bench export clean
$(READY): constraints.txt settings.ini setup.py
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --upgrade "pip>=24"
	.venv/bin/pip install -q torch==$$(sed -n 's/^torch==//p' constraints.txt)
	.venv/bin/pip install -q -c constraints.txt -e ".[all]"
	touch $(READY)

demo: $(READY)
	python -m interpkit.release.demo

test: $(READY)
	bash tests/run.sh

quick: $(READY)
	bash tests/run.sh quick

lab: $(READY)
	cd nbs/tutorials && jupyter lab

docs: $(READY)
	python nbs/docs.py

bench: $(READY)
	cd nbs/benchmarks && papermill $(NAME).ipynb /tmp/$(NAME).ipynb $(if $(QUICK),,-p quick False)

export: $(READY)
	nbdev-export && nbdev-clean
