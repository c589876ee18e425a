# Benchmarks: each prints one JSON object as its last line. Sizes: FILES ROWS PARTITIONS PEER_FILES EVENTS; FLOOR=1, KEEP=1.
$(VENV)/.benchmarks-installed: benchmarks/requirements.txt $(VENV)/.dev-installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --upgrade --target $(VENV)/benchmark-packages -r benchmarks/requirements.txt
	@touch $@

BENCHMARK = $(BIN)/python -m benchmarks $(if $(KEEP),--keep)
BENCHMARK_SIZES = $(if $(ROWS),--rows $(ROWS)) $(if $(PARTITIONS),--partitions $(PARTITIONS))

.PHONY: bench-files
bench-files: $(VENV)/.benchmarks-installed ## Files a second, beside Celery with pandas and COPY: FILES=2000 ROWS=1000
	@$(BENCHMARK) files $(BENCHMARK_SIZES) $(if $(FILES),--files $(FILES)) $(if $(PEER_FILES),--peer-files $(PEER_FILES)) $(if $(FLOOR),--floor)

.PHONY: bench-rows
bench-rows: $(VENV)/.benchmarks-installed ## Rows a second of one large file: ROWS=5000000
	@$(BENCHMARK) rows $(BENCHMARK_SIZES)

.PHONY: bench-latency
bench-latency: $(VENV)/.benchmarks-installed ## Seconds from one event on an idle system to its rows: EVENTS=20
	@$(BENCHMARK) latency $(BENCHMARK_SIZES) $(if $(EVENTS),--events $(EVENTS))
