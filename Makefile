# One environment in .venv for everything; `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
OUT ?= demo_output
CONFIG := configs/demo_flood.yaml
export HF_HUB_OFFLINE ?= 1
export NO_ALBUMENTATIONS_UPDATE ?= 1

.PHONY: help setup demo test test-all bench lint clean

help:
	@echo "make demo      set up, simulate data, fit, test, predict, draw a figure"
	@echo "make test      set up and run the tests (under ten minutes on two cores)"
	@echo "make test-all  the slow tests, too"
	@echo "make bench     compare speed and memory with TerraTorch's own TerraMind"
	@echo "make lint      ruff and mypy"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || (echo "Creating .venv" && $(PYTHON) -m venv .venv)
	@echo "Installing terramind-plugin and TerraTorch into .venv (some minutes at the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@echo "1/5 Simulate flood scenes"
	@$(BIN)/terramind simulate --out $(OUT)/data --chips 60 --size 128
	@echo "2/5 Fine-tune: terratorch fit --config $(CONFIG)"
	@$(BIN)/terratorch fit --config $(CONFIG)
	@echo "3/5 Test: terratorch test"
	@$(BIN)/terratorch test --config $(CONFIG) --ckpt_path $(OUT)/checkpoints/best.ckpt
	@echo "4/5 Predict: terratorch predict"
	@$(BIN)/terratorch predict --config $(CONFIG) --ckpt_path $(OUT)/checkpoints/best.ckpt \
		--predict_output_dir $(OUT)/predictions
	@echo "5/5 Draw"
	@$(BIN)/terramind figure --data $(OUT)/data/data --predictions $(OUT)/predictions --out $(OUT)/figure.png
	@echo
	@echo "Made:"
	@echo "  data         $(OUT)/data"
	@echo "  checkpoint   $(OUT)/checkpoints/best.ckpt"
	@echo "  predictions  $(OUT)/predictions/*.tif"
	@echo "  figure       $(OUT)/figure.png"
	@echo "  curves       $(BIN)/tensorboard --logdir $(OUT)/logs"

test: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not network"

bench: $(STAMP)
	@$(BIN)/python -m bench --write

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean:
	rm -rf $(OUT) output lightning_logs .pytest_cache .mypy_cache .ruff_cache
