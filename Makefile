# Two commands on a fresh Debian or Ubuntu with Python 3.11+, make and git:  make demo  and  make test
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := all,dev
# An installation is current as long as the declared dependencies and the folder are what it was made from.
STAMP := $(VENV)/installed-$(shell { pwd; cat pyproject.toml constraints.txt; } | sha256sum | cut -c -16)
# What Open3D and OpenCV load from the system: library=Debian package. The tests of the site want a Chromium too.
LIBRARIES := libusb-1.0.so.0=libusb-1.0-0 libEGL.so.1=libegl1 libGL.so.1=libgl1 libX11.so.6=libx11-6 \
	libgomp.so.1=libgomp1 libudev.so.1=libudev1 libidn2.so.0=libidn2-0 libglib-2.0.so.0=libglib2.0-0
# One thread per process: xdist runs one process per core.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

# Where Python keeps no bytecode, each process compiles all that it imports: ten seconds of each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-mmcv-ops system-libraries demo test test-method test-task soak bench site clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) system-libraries ## create .venv with every extra, and the system libraries where permitted

setup-mmcv-ops: setup ## compile mmcv's operators, which few detectors need: a compiler and a quarter of an hour
	MMCV_WITH_OPS=1 $(PY) -m pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir \
		--no-binary onedl-mmcv -c constraints.txt onedl-mmcv

demo: setup ## the main job: distil PointPillars with PointDistiller on simulated LiDAR
	$(PY) -m kdbench task=pointcloud method=pointdistiller

test: setup ## lint, types and tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PYTEST) -n logical --maxprocesses 8 --dist worksteal

test-method: setup ## METHOD=NAME: what tests one method, with every task that it serves
	$(PYTEST) --method=$(METHOD)

test-task: setup ## TASK=NAME: what tests one task, with every method that serves it
	$(PYTEST) --task=$(TASK)

soak: setup ## the long version of the tests that kill a run at random
	KDBENCH_SOAK=100 $(PYTEST) -k kill

bench: setup ## speed and memory, side by side with plain loops
	$(PY) -m benchmarks

site: setup ## the leaderboard, from results/ and the committed records
	$(PY) -m leaderboard

clean: ## remove .venv and everything that was built; results/ stays
	rm -rf $(VENV) build dist outputs multirun .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A tool without write access or a package manager is told the one line to run, and the rest of the set-up goes on.
system-libraries:
	@command -v ldconfig >/dev/null || PATH=$$PATH:/sbin:/usr/sbin; command -v ldconfig >/dev/null || exit 0; \
	known=$$(ldconfig -p); missing=; \
	for pair in $(LIBRARIES); do [[ $$known == *"$${pair%=*} "* ]] || missing+=" $${pair#*=}"; done; \
	command -v chromium chromium-browser google-chrome >/dev/null || missing+=" chromium"; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	then exit 0; fi; \
	echo "System libraries are missing; LiDAR simulation and the browser tests need them. Run:  sudo apt-get install -y$$missing"

$(PY):
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "Creating $(VENV) with $$("$$python" -V) ($$(command -v "$$python"))"; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
			package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
			[ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends $$package || { \
				echo "$$python cannot create virtual environments. Run:  sudo apt-get install -y $$package" >&2; exit 1; }; }; \
		exec "$$python" -m venv --clear $(VENV); \
	done; \
	echo "No Python 3.11 or newer on PATH (python3: $$(python3 -V 2>/dev/null || echo none)). Install one, or name it:  make setup PYTHON=/path/to/python3.11" >&2; exit 1

# pip compiles twenty thousand files one after the other.
$(STAMP): $(PY)
	rm -f $(VENV)/installed-*
	$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	$(PY) -m pip install --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	$(PY) -m compileall -q -j 0 $(VENV)/lib >/dev/null || true  # some packages hold templates that are no Python
	$(PY) -m pip check
	touch $@
