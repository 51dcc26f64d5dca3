# One environment in .venv for everything; `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
SOURCES_STAMP := .venv/installed-sources
DEV_STAMP := .venv/installed-dev
# Index with CPU builds of PyTorch, e.g. https://download.pytorch.org/whl/cpu: a tenth of the size of the CUDA builds.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off
OUT ?= demo_output
CONFIG := configs/demo_flood.yaml
export HF_HUB_OFFLINE ?= 1
export NO_ALBUMENTATIONS_UPDATE ?= 1

# A comma within an argument of a function.
, := ,

# $(call step,what and how big,command): says what begins, and at its end how long it took and what .venv holds.
define step
	@echo "  $(1) ..."
	@start=$$(date +%s); $(2) && \
		echo "    done in $$(( $$(date +%s) - start )) s; .venv has $$(du -sh .venv | cut -f 1)"
endef

.PHONY: help setup demo demo-series demo-region test test-all test-oldest bench nano results thinking docs dist lint clean

help:
	@echo "make demo      set up, simulate data, fit, test, predict, draw a figure"
	@echo "make demo-series  the same on four dates with one elevation model, with a map"
	@echo "make demo-region  simulate a satellite catalogue, make chips of it, fine-tune, map the region, draw a figure"
	@echo "make test      set up and run the tests (under ten minutes on two cores)"
	@echo "make test-all  the slow tests, too"
	@echo "make test-oldest  the tests with the lowest versions that pyproject.toml allows (Python 3.11, about 6 GB)"
	@echo "make bench     compare speed and memory with TerraTorch's own TerraMind"
	@echo "make nano      train terramind_sim_nano from nothing (over an hour on two cores)"
	@echo "make results   measure what terramind_sim_nano has learned; writes RESULTS.md"
	@echo "make thinking  ask on 30 fine-tunings whether Thinking-in-Modalities helps (about an hour on two cores)"
	@echo "make docs      build the documentation into site/"
	@echo "make ... TORCH_INDEX=https://download.pytorch.org/whl/cpu   set up with PyTorch for CPUs, a tenth of the size"
	@echo "make dist      the wheel and the source archive in dist/, checked by twine"
	@echo "make lint      ruff, mypy, and the wheel built and imported"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@echo "Installing into .venv (once; it can be interrupted and started again)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifeq ($(TORCH_INDEX),)
	$(call step,1/2 PyTorch with CUDA: about 3 GB to download$(,) some minutes (0.3 GB with TORCH_INDEX=URL$(,) see make help),$(PIP) torch torchvision)
else
	$(call step,1/2 PyTorch from $(TORCH_INDEX): about 0.3 GB to download if it has CPU builds$(,) a minute,$(PIP) --index-url $(TORCH_INDEX) torch torchvision)
endif
	$(call step,2/2 TerraTorch and its libraries: about 0.6 GB to download$(,) some minutes,$(PIP) -e .)
	@touch $@

$(SOURCES_STAMP): $(STAMP)
	$(call step,libraries of satellite catalogues: about 0.1 GB to download$(,) a minute,$(PIP) -e ".[sources]")
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(call step,libraries of tests and documentation: about 0.3 GB to download$(,) a minute or two,$(PIP) -e ".[dev]")
	@touch $@ $(SOURCES_STAMP)

demo: $(STAMP)
	@echo "1/5 Simulate flood scenes"
	@$(BIN)/terramind simulate --out $(OUT)/data --chips 240 --size 64
	@echo "2/5 Fine-tune: terramind fit --config $(CONFIG)"
	@$(BIN)/terramind fit --config $(CONFIG)
	@echo "3/5 Test: terramind test"
	@$(BIN)/terramind test --config $(CONFIG) --ckpt_path $(OUT)/checkpoints/best.ckpt
	@echo "4/5 Predict: terramind predict"
	@$(BIN)/terramind predict --config $(CONFIG) --ckpt_path $(OUT)/checkpoints/best.ckpt \
		--predict_output_dir $(OUT)/predictions
	@echo "5/5 Draw and compare with a map of land alone"
	@$(BIN)/terramind figure --data $(OUT)/data/data --predictions $(OUT)/predictions --out $(OUT)/figure.png
	@echo
	@echo "Made:"
	@echo "  figure       $(OUT)/figure.png: chips from the best to the worst, with hits, false alarms and misses"
	@echo "  data         $(OUT)/data"
	@echo "  checkpoint   $(OUT)/checkpoints/best.ckpt"
	@echo "  predictions  $(OUT)/predictions/*.tif"
	@echo
	@echo "Next:"
	@echo "  $(BIN)/tensorboard --logdir $(OUT)/logs    # curves and pictures of the training"
	@echo "  $(BIN)/terramind compare -c $(CONFIG) --arms plain,lora,frozen --seeds 2 --out $(OUT)/compare    # which way is worth its time?"
	@echo "  $(BIN)/terramind new --task segmentation --modalities S2L2A --data YOUR_FOLDER    # a configuration for your own chips"

SERIES := $(OUT)/series
SERIES_CONFIG := configs/demo_flood_series.yaml

demo-series: $(STAMP)
	@echo "1/6 Simulate floods on four dates"
	@$(BIN)/terramind simulate --out $(SERIES)/data --chips 160 --size 64 --dates 4
	@echo "2/6 Fine-tune: terramind fit --config $(SERIES_CONFIG)"
	@$(BIN)/terramind fit --config $(SERIES_CONFIG)
	@echo "3/6 Test: terramind test"
	@$(BIN)/terramind test --config $(SERIES_CONFIG) --ckpt_path $(SERIES)/checkpoints/best.ckpt
	@echo "4/6 Map: terramind map of the first test chip"
	@name=$$(head -n 1 $(SERIES)/data/splits/flood_test_data.txt) && $(BIN)/terramind map --config $(SERIES_CONFIG) \
		--ckpt_path $(SERIES)/checkpoints/best.ckpt --out $(SERIES)/maps --accelerator cpu \
		--scene S2L1C=$(SERIES)/data/data/S2L1CHand/$${name}_S2Hand.tif \
		--scene S1GRD=$(SERIES)/data/data/S1GRDHand/$${name}_S1Hand.tif \
		--scene DEM=$(SERIES)/data/data/DEMHand/$${name}_DEMHand.tif
	@echo "5/6 Predict: terramind predict"
	@$(BIN)/terramind predict --config $(SERIES_CONFIG) --ckpt_path $(SERIES)/checkpoints/best.ckpt \
		--predict_output_dir $(SERIES)/predictions
	@echo "6/6 Draw"
	@$(BIN)/terramind figure --data $(SERIES)/data/data --predictions $(SERIES)/predictions --out $(SERIES)/figure.png
	@echo
	@echo "Made:"
	@echo "  data         $(SERIES)/data"
	@echo "  checkpoint   $(SERIES)/checkpoints/best.ckpt"
	@echo "  map          $(SERIES)/maps"
	@echo "  predictions  $(SERIES)/predictions/*.tif"
	@echo "  figure       $(SERIES)/figure.png"

REGION := $(OUT)/region
CATALOGUE := --stac $(REGION)/world/catalog.json --catalogue planetary_computer --date 2021-06-01/2022-08-31

# Every command goes on where an interrupted one has stopped.
demo-region: $(SOURCES_STAMP)
	@echo "1/6 Simulate a catalogue of satellite scenes in two UTM zones"
	@$(BIN)/terramind simulate --world stac --out $(REGION)/world --size 528
	@echo "2/6 Make chips: terramind chips"
	@$(BIN)/terramind chips $(CATALOGUE) --modalities S2L2A,S1RTC,DEM --labels $(REGION)/world/labels --out $(REGION)/chips
	@echo "3/6 Check: terramind check"
	@$(BIN)/terramind check -c $(REGION)/chips/config.yaml
	@echo "4/6 Fine-tune: terramind fit"
	@$(BIN)/terramind fit -c $(REGION)/chips/config.yaml --trainer.max_epochs 30 --data.init_args.batch_size 4
	@echo "5/6 Map the region: terramind map --stac"
	@$(BIN)/terramind map -c $(REGION)/chips/config.yaml \
		--ckpt_path $(REGION)/chips/training/checkpoints/best.ckpt \
		$(CATALOGUE) --aoi $(REGION)/world/aoi.geojson --out $(REGION)/maps --workers 2
	@echo "6/6 Draw"
	@$(BIN)/terramind figure --data $(REGION)/world --predictions $(REGION)/maps --out $(REGION)/figure.png
	@echo
	@echo "Made:"
	@echo "  catalogue    $(REGION)/world/catalog.json"
	@echo "  chips        $(REGION)/chips"
	@echo "  checkpoint   $(REGION)/chips/training/checkpoints/best.ckpt"
	@echo "  maps         $(REGION)/maps/*_pred.tif, one a UTM zone"
	@echo "  figure       $(REGION)/figure.png"

test: $(DEV_STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(DEV_STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not network"

test-oldest:
	@.ci/oldest $(PYTHON)

bench: $(DEV_STAMP)
	@$(BIN)/python -m bench --write

# Six tokenizers on one core each, two at a time, then the model. An interrupted `make nano` goes on where it was.
NANO := terramind_sim_nano
SHIPPED := terramind_plugin/shipped
TOKENIZERS := s2l2a s1grd s1rtc dem lulc ndvi
TRAINED := $(TOKENIZERS:%=nano/tokenizers/%/done)
FOLDERS := S2L2A=S2L2AHand/*_S2L2AHand.tif S1GRD=S1GRDHand/*_S1Hand.tif S1RTC=S1RTCHand/*_S1RTCHand.tif \
	DEM=DEMHand/*_DEMHand.tif LULC=LULCHand/*_LULCHand.tif NDVI=NDVIHand/*_NDVIHand.tif

nano: $(STAMP)
	@$(MAKE) --no-print-directory -j 2 $(TRAINED)
	@$(MAKE) --no-print-directory nano/masked/done
	@for name in $(TOKENIZERS); do $(BIN)/terramind export --model nano/tokenizers/$$name/last.ckpt --dtype float16 \
		--out $(SHIPPED)/$(NANO)_tokenizer_$$name.safetensors || exit 1; done
	@$(BIN)/terramind export --model nano/masked/last.ckpt --dtype float16 --out $(SHIPPED)/$(NANO).safetensors
	@echo "Curves: $(BIN)/tensorboard --logdir nano/logs"

nano/worlds/splits/flood_test_data.txt: | $(STAMP)
	@$(BIN)/terramind simulate --world globe --out nano/worlds --chips 2400 --size 128 --seed 11 --processes 2

nano/tokenizers/%/done: nano/worlds/splits/flood_test_data.txt
	@echo "Training the tokenizer of $*"
	@mkdir -p $(@D)
	@OMP_NUM_THREADS=1 $(BIN)/terramind fit --config configs/pretrain/tokenizer_$*.yaml \
		$(if $(wildcard $(@D)/last.ckpt),--ckpt_path $(@D)/last.ckpt) > $(@D)/log.txt 2>&1 \
		|| (tail -5 $(@D)/log.txt; exit 1)
	@touch $@

nano/tokens/done: $(TRAINED)
	@$(BIN)/terramind tokenize --model $(NANO) --out nano/tokens --replace \
		$(foreach folder,$(FOLDERS),--data '$(subst =,=nano/worlds/data/,$(folder))') \
		$(foreach name,$(TOKENIZERS),--tokenizer_ckpt_path $(name)=nano/tokenizers/$(name)/last.ckpt)
	@touch $@

nano/masked/done: nano/tokens/done
	@$(BIN)/terramind fit --config configs/pretrain/masked_nano.yaml \
		$(if $(wildcard nano/masked/last.ckpt),--ckpt_path nano/masked/last.ckpt)
	@touch $@

# A seed that no training uses.
results: $(DEV_STAMP)
	@$(BIN)/terramind simulate --world globe --chips 320 --size 128 --seed 7001 \
		--processes 2 --out output/results_world
	@$(BIN)/python -m bench.results --data output/results_world --out .

COVER := $(OUT)/cover

# What lies below the flood, from radar alone; an interrupted `make thinking` goes on where it was.
thinking: $(DEV_STAMP)
	@$(BIN)/terramind simulate --out $(COVER) --chips 240 --size 64 --task flooded_cover
	@$(BIN)/python -m bench.thinking --data $(COVER) --out $(COVER)/compare
	@$(BIN)/terramind compare -c configs/demo_flooded_cover.yaml --arms plain,tim,oracle --labels 8,all --seeds 5 \
		--out $(COVER)/compare

docs: $(DEV_STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html"

# Built from what is committed: a folder build/ of an earlier run never gets into the wheel.
dist: $(STAMP)
	@rm -rf dist output/source && mkdir -p dist output/source
	@git archive HEAD | tar -x -C output/source
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[release]"
	@$(BIN)/python -m build --outdir dist output/source > output/build.log 2>&1 || (tail -20 output/build.log; exit 1)
	@$(BIN)/python -m twine check --strict dist/*

lint: $(DEV_STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@.ci/wheel $(BIN)/python

clean:
	rm -rf $(OUT) nano output site lightning_logs .pytest_cache .mypy_cache .ruff_cache
