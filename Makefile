# Everything a newcomer needs, from a bare machine: `make demo`, `make test`.
# The package is built against the torch of this environment, without build isolation (which would download a second torch).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WORKERS ?= 2
BIN := $(VENV)/bin
CXX_FILES := $(wildcard $(foreach name,csrc/*/* csrc/*/*/* tests/*/* benchmarks/*,$(name).h $(name).cpp $(name).cu))

.PHONY: demo test lint format types pytest bench bench-pytest bench-step bench-layers self-check gpu-check gpu-report gpu-cases triton-check wheel wheel-check clean

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.experiments.multimnist $(ARGS)

test: lint types pytest self-check

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

types: $(VENV)/.test
	$(BIN)/mypy

# Files are shared out among processes: what a file compiles once stays with it. Threads of torch that wait must not hold the
# cores that the other processes want.
pytest: $(VENV)/.test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -p no:benchmark -n $(WORKERS) --dist loadfile $(ARGS)

self-check: $(VENV)/.test
	$(BIN)/python -m fastmtl

# Ratios to the floor and to torch operations; `bench-pytest`: the same cases under pytest-benchmark.
bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.ops $(ARGS)

bench-pytest: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks/test_ops.py $(ARGS)

bench-step: $(VENV)/.test
	$(BIN)/python -m benchmarks.step $(ARGS)

# Moments of layers against the layers' own backward; `constants` instead of `ratios`: what the cost model assumes.
bench-layers: $(VENV)/.test
	$(BIN)/python -m benchmarks.layer_moments ratios $(ARGS)

# On a machine with a GPU: checks and times everything, into one file; elsewhere it says that there is none.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check $(ARGS)

# What the compilers make of the Triton kernels and then of the CUDA kernels: registers, spills, occupancy, wide loads (of
# Triton also compile times), for five GPUs and for six; none is needed.
gpu-report: $(VENV)/.test
	$(BIN)/python -m tests.gpu.report $(ARGS)
	$(BIN)/python -m tests.cuda.report $(ARGS)

# Every case of the Triton and CUDA kernels by all executors, with more orders of programs, and every planted fault; `make test`
# takes a part, by rules.
gpu-cases: $(VENV)/.test
	FASTMTL_ALL_CASES=1 $(BIN)/python -m pytest -p no:benchmark -n $(WORKERS) --dist loadfile \
	  tests/gpu tests/cuda tests/ops/test_backends.py -k "gpu or cuda or triton" $(ARGS)

# What other versions of Triton make of the kernels.
triton-check: $(VENV)/.test
	bash tests/triton_check.sh $(BIN)/python $(ARGS)

wheel: $(VENV)/.base
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .

# One wheel, built here, under several torch versions, each in an environment of its own.
wheel-check: wheel
	PYTHON=$(PYTHON) bash tests/wheel_check.sh dist

$(VENV)/.base:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade 'pip>=23' 'setuptools>=77' wheel ninja numpy '$(TORCH)'
	touch $@

# Installed again when the build or the C++ and CUDA sources change; ninja compiles only what is out of date.
$(VENV)/.installed: $(VENV)/.base pyproject.toml setup.py $(wildcard csrc/*/*.* csrc/*/*/*.*)
	$(BIN)/python -m pip install -q --no-build-isolation -e .
	touch $@

# BackPACK, which the moments are compared with, asks for torchvision, which would replace torch: it works without.
# ttsem, which executes Triton kernels without a GPU, asks for Python 3.12: it works on 3.11.
$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[test,demo]'
	$(BIN)/python -m pip install -q --no-deps backpack-for-pytorch==1.7.1 unfoldNd==0.2.3 einops==0.8.2
	$(BIN)/python -m pip install -q --no-deps --ignore-requires-python ttsem==0.1.0
	touch $@

$(VENV)/.demo: $(VENV)/.installed
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[demo]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastmtl/*.so
