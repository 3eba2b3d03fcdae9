# Everything runs in .venv at the root; nothing else needs to be installed but Python 3.11, git and make.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: install demo test soak lint clean
install: $(READY)

# sam2 is a source distribution that imports torch while it builds, so torch comes first and isolation is off.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet torch torchvision
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation "sam2>=1.1,<2"
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $(READY)

# Labels two photographs that scikit-learn ships and a few drawn scenes, and draws a contact sheet of the result.
demo: $(READY)
	$(BIN)/python jobs/demo.py demo_out

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

# Long fault and memory tests.
soak: $(READY)
	$(BIN)/python -m pytest -m soak

clean:
	rm -rf .venv demo_out
