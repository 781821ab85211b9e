# One word per thing a person wants; `make help` lists them.
SHELL   := /bin/bash
PYTHON  ?= python3
VENV    ?= .venv
CONFIG  ?= configs/demo.yaml
RUN_DIR ?=
FLAGS   ?=
PY      := $(VENV)/bin/python
STAGES  := $(sort $(wildcard scripts/[0-9][0-9]_*.py))
CHOICE  := --config $(CONFIG)$(if $(RUN_DIR), --run-dir "$(RUN_DIR)")
MODULE  := PYTHONPATH=scripts $(PY) -m

# Packages are installed uncompiled, so Python must be allowed to keep what it compiles at the first import: in a shell
# that forbids it, as in many container images, every start of every process would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

# A --run-dir in FLAGS would reach the scripts alone, and the card, the report and the chat would be of another run.
ifneq ($(findstring --run-dir,$(FLAGS)),)
$(error FLAGS holds --run-dir; say RUN_DIR=FOLDER instead, which the card, the report and the chat are told too)
endif

.DEFAULT_GOAL := help
.PHONY: help demo all run-all test test-slow test-long lint bench report checkpoints chat schema clean install install-dev
.NOTPARALLEL:

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+[^:]*:.*## /{printf "  make %-30s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf "  make %-30s %s\n" "stage-05 [CONFIG=...]" "Run one stage (stage-06 runs both of its scripts)"
	@echo "  CONFIG=configs/demo.yaml chooses the run, RUN_DIR=FOLDER where it lies (default: runs/<run>), VENV=.venv the environment."
	@echo "  FLAGS='--force' is passed to the scripts, FLAGS='--model sft' to the chat."

demo: export HF_HUB_OFFLINE = 1
demo:  ## Raw text to a gated model on this machine, offline after the install
	@[ "$(CONFIG)" = configs/demo.yaml ] || { echo "make demo runs configs/demo.yaml; for yours: make all CONFIG=$(CONFIG)" >&2; exit 2; }
	@$(MAKE) --no-print-directory run-all CONFIG=configs/demo.yaml

all: run-all  ## Run all stages of CONFIG

# A failed gate still deserves its card, so the card is printed before the exit code is given.
run-all: install
	@for script in $(filter-out scripts/12_%,$(STAGES)); do $(PY) $$script $(CHOICE) $(FLAGS) || exit $$?; done; \
	$(PY) scripts/12_check_gates.py $(CHOICE) $(FLAGS); verdict=$$?; \
	if [ $$verdict -le 1 ]; then $(MODULE) pipeline_lib.reporting.run_card $(CHOICE) || exit $$?; fi; exit $$verdict

stage-%: install
	@scripts="$(wildcard scripts/$*_*.py)"; [ -n "$$scripts" ] || { echo "there is no stage $*; stages are 01 to 12" >&2; exit 2; }; \
	for script in $$scripts; do $(PY) $$script $(CHOICE) $(FLAGS) || exit $$?; done

report: install  ## Write runs/<run>/report.html
	@$(MODULE) pipeline_lib.reporting.report $(CHOICE)

checkpoints: install  ## List the checkpoints of CONFIG; FLAGS='--export best --to FOLDER' takes a model out
	@$(MODULE) pipeline_lib.reporting.checkpoints $(CHOICE) $(FLAGS)

chat: install  ## Talk to the model of CONFIG
	@$(MODULE) pipeline_lib.reporting.chat $(CHOICE) $(FLAGS)

test: install-dev  ## Run the tests (some five minutes on 2 cores)
	$(PY) -m pytest -m "not slow and not long" -n 2 --dist loadfile --durations=25

test-slow: install-dev  ## Run those that take seconds each: all stages, kills, several processes (some five minutes)
	$(PY) -m pytest -m "slow and not long" -n 2 --dist loadfile --durations=25

test-long: install-dev  ## Run those that take minutes: a hundred kills, every engine, full disks
	$(PY) -m pytest -m long

lint: install-dev  ## Check style and import directions
	$(VENV)/bin/ruff check .
	PYTHONPATH=scripts $(VENV)/bin/lint-imports --no-cache

bench: install-dev  ## Measure every claim against its peer and write benchmarks/RESULTS.md
	$(PY) benchmarks/run_all.py

schema: install  ## Write configs/schema.json, from which editors complete the YAMLs
	@$(MODULE) pipeline_lib.config.schema

clean:  ## Delete one run: make clean RUN=demo
	@[ -n "$(RUN)" ] || { echo "name the run: make clean RUN=demo" >&2; exit 2; }
	@case "$(RUN)" in */*|.*) echo "RUN is a name inside runs/, not a path" >&2; exit 2;; esac
	@[ -d "runs/$(RUN)" ] || { echo "there is no runs/$(RUN)" >&2; exit 2; }
	rm -rf "runs/$(RUN)"

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# venv links bin/python first and installs pip last, so only the stamp says that it came to its end. What it left undone is
# made anew; a folder that it did not make is used as it is where pip is whole (its file list is written last), or not at
# all. PYTHON may be the very one that is removed, so it names the one that it was made from. A stamp saves time and no
# more: where none can be written, as in a read-only image, that is no failure.
$(VENV)/.made:
	@$(PY) -c 'import importlib.metadata as m, sys; sys.exit(not m.distribution("pip").read_text("RECORD"))' >/dev/null 2>&1 || { \
	[ ! -e "$(VENV)" ] || [ -e "$(VENV)/pyvenv.cfg" ] || { echo "$(VENV) was not made by venv, and pip is missing there: choose another folder: make VENV=.venv ..." >&2; exit 2; }; \
	base=$$($(PYTHON) -c 'import sys; print(sys._base_executable) if sys.version_info[:2] in ((3, 11), (3, 12)) else sys.exit("Python 3.11 or 3.12 is needed: make PYTHON=python3.11 ...")') && \
	rm -rf "$(VENV)" && echo "$$base -m venv $(VENV)" && "$$base" -m venv "$(VENV)"; }
	@touch $@ 2>/dev/null || true

# Without compiling every module there is, which takes longer than the rest: Python compiles what is imported, once.
$(VENV)/.installed: requirements.txt $(VENV)/.made
	$(PY) -m pip install --quiet --no-compile -r requirements.txt
	@touch $@ 2>/dev/null || true

# torchao lies beside the packages: among them, every process that loads a transformers model would import it.
$(VENV)/.installed-dev: requirements-dev.txt requirements.txt requirements-gpu.txt $(VENV)/.made
	$(PY) -m pip install --quiet --no-compile -r requirements-dev.txt
	$(PY) -m pip install --quiet --no-compile --no-deps --upgrade --target $(VENV)/torchao "$$(grep ^torchao requirements-gpu.txt)"
	@touch $(VENV)/.installed $@
