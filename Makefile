# make demo     a model of handwritten digits: trained, evaluated, sampled, in a few minutes
# make test     style, types and tests
# make bench    every benchmark, shortened: that they run, not what they measure
# make notebooks  docs/notebooks, run again, with what they print and show
# make pictures the pictures of README and docs, from trained runs: a quarter of an hour, or two
# make docs     the site, into site/: a link that dangles is an error
# make package  wheel and sdist, installed into an empty environment and run there
# All set up .venv first. Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench install wheel package notebooks pictures docs clean

demo: install
	@$(BIN)/vdm demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --durations 10

bench: install .venv/peers
	$(BIN)/python benchmarks/speedrun.py digits --minutes 0.1 --no-log
	$(BIN)/python benchmarks/step.py --network diffusers --network azula --repeats 1 --no-log
	$(BIN)/python benchmarks/scaling.py --axis levels --repeats 1 --no-log
	$(BIN)/python benchmarks/where.py digits --steps 2 --no-log
	$(BIN)/python benchmarks/gpu.py --device cpu --preset tiny --compile off --seconds 0.2 --no-log
	$(BIN)/python benchmarks/threads.py --machine idle --seconds 1 --rounds 1 --no-log
	$(BIN)/python benchmarks/loader.py --size 16 --examples 256 --steps 2 --no-log
	$(BIN)/python benchmarks/schedules.py cost digits --repeats 11
	$(BIN)/python benchmarks/averages.py digits --repeats 2 --no-log
	$(BIN)/python benchmarks/calibration.py --repeats 2 --only discrete --only compare --only quality --no-log
	$(BIN)/python benchmarks/attack.py --minutes 0.3 --only corruption --only inputs --no-log
	$(BIN)/python benchmarks/quality.py digits --n 100 --steps 50 --no-log
	rm -rf .venv/run .venv/labels
	$(BIN)/vdm train digits --condition label --run .venv/labels --steps 20 --json
	$(BIN)/python benchmarks/guidance.py .venv/labels --n 20 --limit 20 --classified 10 --draws 1 --classifier-steps 5 --steps 3 --no-log
	$(BIN)/vdm train digits --run .venv/run --steps 20 --json
	$(BIN)/python benchmarks/likelihoods.py .venv/run --limit 8 --importance-limit 4 --draws 2 --samples 2 --no-log
	$(BIN)/python benchmarks/chains.py .venv/run --limit 8 --steps 2 --no-log
	$(BIN)/python benchmarks/samplers.py .venv/run --n 40 --steps 4 --ancestral-steps 8 --flow-n 2 --limit 8 --repeats 1 --no-log
	$(BIN)/python benchmarks/compression.py .venv/run --limit 40 --steps 3 --configuration "two threads" --no-log

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	@echo "Setting up .venv, once: a minute or two."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

.venv/peers: benchmarks/requirements.txt .venv/installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	@touch $@

wheel: install
	rm -rf dist
	$(BIN)/hatchling build --directory dist

package: wheel
	rm -rf .venv/empty
	$(PYTHON) -m venv .venv/empty
	.venv/empty/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd .venv/empty && bin/vdm doctor
	cd .venv/empty && bin/vdm train digits --run run --steps 20 --threads 1 --json
	cd .venv/empty && bin/vdm evaluate run --limit 20 --threads 1 --json
	cd .venv/empty && bin/vdm sample run --n 4 --steps 4 --out sheet.png
	.venv/empty/bin/python -m pip install -qq --disable-pip-version-check --no-deps --force-reinstall dist/*.tar.gz
	cd .venv/empty && bin/vdm --version

notebooks: install
	OMP_NUM_THREADS=1 $(BIN)/python docs/notebooks/execute.py

pictures: install
	$(BIN)/python docs/pictures.py

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean

clean:
	rm -rf .venv dist site
