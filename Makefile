# make demo | study | platforms | nuclei | test | test-slurm | soak | readers | check | bench: each sets up what it needs
# in .venv, from Python 3.11 and make alone.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run-installed
DEV_STAMP := $(VENV)/.dev-installed
READERS_VENV := .venv-readers
READERS_STAMP := $(READERS_VENV)/.installed
DEMO := demo
# Folder of the small public sets, for make nuclei.
PUBLIC ?= ../shared/data
TEST_JOBS ?= 2
KILLS ?= 20
SOAK_SLIDES ?= 200
FUZZ_S ?= 300

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo study platforms nuclei test test-slurm soak readers check bench clean schemas

# Every package by its SHA-256; pip first, as older ones do not take digests from a constraint.
$(RUN_STAMP): requirements.lock requirements-cuda.lock requirements-pip.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Slideloom needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-pip.lock
	@# PyTorch from a folder of wheels that pip is set up with (PIP_FIND_LINKS), where one holds a build whose digest the
	@# lock names, such as that for CPUs; pip itself would sooner take the larger one that the index holds.
	@sed -n '/^torch==/,/[^\\]$$/p' requirements.lock > $(VENV)/torch.lock
	@$(BIN)/python -m pip install --quiet --no-index --no-deps --require-hashes --requirement $(VENV)/torch.lock 2> /dev/null || true
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) requirements-dev.lock requirements-fuzz.lock
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-dev.lock --constraint requirements.lock
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-fuzz.lock
	@touch $@

demo: $(RUN_STAMP)
	$(BIN)/slideloom demo $(DEMO)/cohort
	$(BIN)/snakemake --profile profiles/local --configfile config/studies/demo.yaml
	$(BIN)/slideloom show $(DEMO)/results

# Every experiment of the SP/H&E report, small; about half an hour on two cores.
study: $(RUN_STAMP)
	$(BIN)/slideloom demo --slides 16 --size 600 $(DEMO)/sp_he_cohort
	$(BIN)/snakemake --profile profiles/local --configfile config/studies/sp_he_demo.yaml
	$(BIN)/slideloom show $(DEMO)/sp_he_results

# Panels that no training slide had, on synthetic slides of three platforms; about twenty minutes on two cores.
platforms: $(RUN_STAMP)
	$(BIN)/slideloom demo --platforms $(DEMO)/platforms
	$(BIN)/snakemake --profile profiles/local --configfile config/studies/stain_agnostic_demo.yaml
	$(BIN)/slideloom show $(DEMO)/platforms_results

# Stains that no training slide had, on the small public sets in PUBLIC; within 90 minutes on two cores.
nuclei: $(RUN_STAMP)
	$(BIN)/python config/studies/real_nuclei/prepare.py $(PUBLIC) data/real_nuclei
	$(BIN)/snakemake --profile profiles/local --configfile config/studies/real_nuclei.yaml
	$(BIN)/slideloom show results/real_nuclei

# anndata, spatialdata, ome-zarr-py and napari's reader, in an environment of their own: they hold pandas below 3.
# Tests of the exports run programs in it, and skip where it is absent.
$(READERS_STAMP): requirements-readers.lock requirements-pip.lock
	$(PYTHON) -m venv $(READERS_VENV)
	@echo '*' > $(READERS_VENV)/.gitignore
	$(READERS_VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements-pip.lock
	$(READERS_VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements-readers.lock
	@touch $@

readers: $(READERS_STAMP)

test: $(DEV_STAMP) $(READERS_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadscope

# A small study through `snakemake --profile slurm`, on a Slurm of one machine that is installed (Debian's packages) and
# started for it. It needs root, and skips, saying why, where it may not.
test-slurm: $(DEV_STAMP)
	SLIDELOOM_SLURM=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm --durations 3

# Hours: every group of files fuzzed for FUZZ_S seconds; a small study killed at a random moment (Snakemake, a job,
# everything) and started again, KILLS times, each in a run of its own; SOAK_SLIDES small slides, every tenth of them bad,
# killed again and again on a disk that fills up; every kind of bad slide in one study. The seeds are printed;
# SLIDELOOM_SEED sets the first.
soak: export SLIDELOOM_SOAK := $(KILLS)
soak: export SLIDELOOM_SOAK_SLIDES := $(SOAK_SLIDES)
soak: export SLIDELOOM_FUZZ_S := $(FUZZ_S)
soak: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz tests/workflow/test_kills.py tests/workflow/test_soak.py tests/bad_inputs/test_corpus.py -s --durations 3

# The linter reads the demo's config, and that names the cohort's files.
$(DEMO)/cohort/slides.tsv: | $(RUN_STAMP)
	$(BIN)/slideloom demo $(DEMO)/cohort

check: $(DEV_STAMP) | $(DEMO)/cohort/slides.tsv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint --configfile config/studies/demo.yaml
	$(BIN)/python tools/audit.py requirements.lock requirements-dev.lock requirements-readers.lock requirements-cuda.lock requirements-fuzz.lock

bench: $(DEV_STAMP)
	@for program in benchmarks/bench_*.py; do echo "== $$program"; OMP_NUM_THREADS=1 $(BIN)/python $$program || exit 1; done

schemas: $(RUN_STAMP)
	$(BIN)/slideloom schema --write config
	$(BIN)/python -m slideloom.reports.docs docs/tables.md
	$(BIN)/python -m slideloom.cli.encoder_page docs/encoders.md

clean:
	rm -rf $(VENV) $(READERS_VENV) $(DEMO) .snakemake .pytest_cache .mypy_cache .ruff_cache
