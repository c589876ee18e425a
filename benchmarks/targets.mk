# Benchmarks: each prints one JSON object as its last line. Sizes: FILES ROWS PARTITIONS PEER_FILES EVENTS; FLOOR=1, KEEP=1.
$(VENV)/.benchmarks-installed: benchmarks/requirements.txt $(VENV)/.dev-installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --upgrade --target $(VENV)/benchmark-packages -r benchmarks/requirements.txt
	@touch $@

BENCHMARK = $(BIN)/python -m benchmarks $(if $(KEEP),--keep)
BENCHMARK_SIZES = $(if $(ROWS),--rows $(ROWS)) $(if $(PARTITIONS),--partitions $(PARTITIONS))

.PHONY: bench-files
bench-files: $(VENV)/.benchmarks-installed ## Files a second, next to Celery with pandas and COPY: FILES=2000 ROWS=1000
	@$(BENCHMARK) files $(BENCHMARK_SIZES) $(if $(FILES),--files $(FILES)) $(if $(PEER_FILES),--peer-files $(PEER_FILES)) $(if $(FLOOR),--floor)

.PHONY: bench-rows
bench-rows: $(VENV)/.benchmarks-installed ## Rows a second of one large file: ROWS=5000000
	@$(BENCHMARK) rows $(BENCHMARK_SIZES) $(if $(FLOOR),--floor)

.PHONY: bench-latency
bench-latency: $(VENV)/.benchmarks-installed ## Seconds from one event on an idle system to its rows: EVENTS=20
	@$(BENCHMARK) latency $(BENCHMARK_SIZES) $(if $(EVENTS),--events $(EVENTS))

.PHONY: bench-idle
bench-idle: $(VENV)/.dev-installed ## Cores and memory of an idle system, next to plain Dagster: SECONDS=120
	@$(BENCHMARK) idle $(if $(SECONDS),--seconds $(SECONDS))

.PHONY: bench-start
bench-start: $(VENV)/.benchmarks-installed ## Seconds of a second start until a file is stored, next to plain Dagster: STARTS=3
	@$(BENCHMARK) start $(if $(STARTS),--starts $(STARTS))

.PHONY: bench-activity
bench-activity: $(VENV)/.benchmarks-installed ## User activity events a second from Apache Kafka to Delta: EVENTS=1000000 DECLARED=1
	@$(BENCHMARK) activity $(if $(EVENTS),--events $(EVENTS)) $(if $(DECLARED),--declared)

.PHONY: bench-commits
bench-commits: $(VENV)/.dev-installed ## Milliseconds of a small commit of user activity, the first and the last 100: COMMITS=1000
	@$(BENCHMARK) commits $(if $(COMMITS),--commits $(COMMITS))

.PHONY: bench-growth-streams
bench-growth-streams: $(VENV)/.dev-installed ## What a run over new events costs with ten times as much on record: EVENTS=20000
	@$(BENCHMARK) growth-streams $(if $(EVENTS),--events $(EVENTS))

.PHONY: bench-crm
bench-crm: $(VENV)/.benchmarks-installed ## CRM messages a second from the topic to rows in PostgreSQL: MESSAGES=100000
	@$(BENCHMARK) crm $(if $(MESSAGES),--messages $(MESSAGES))

.PHONY: bench-listing
bench-listing: $(VENV)/.benchmarks-installed ## Announcements a second of a large folder, and the second look at it: FILES=100000
	@$(BENCHMARK) listing $(if $(FILES),--files $(FILES))

.PHONY: bench-attachments
bench-attachments: $(VENV)/.dev-installed ## Attachments a second and MB a second, next to curl and a copy: SMALL=5000 LARGE=50 STORE=local|dfs|dfs-tls
	@$(BIN)/python -m benchmarks.attachments $(if $(KEEP),--keep) $(if $(SMALL),--small $(SMALL)) $(if $(LARGE),--large $(LARGE)) $(if $(STORE),--store $(STORE))

.PHONY: bench-baselines
bench-baselines: $(VENV)/.dev-installed ## The same batches of files with and without baselines, as a ratio: FILES=256 ROWS=1000
	@$(BENCHMARK) baselines $(if $(ROWS),--rows $(ROWS)) $(if $(FILES),--files $(FILES))

.PHONY: bench-growth
bench-growth: $(VENV)/.dev-installed ## The same work with ten times as many files on record, as a ratio: FILES=1000 KNOWN=10000
	@$(BENCHMARK) growth $(if $(ROWS),--rows $(ROWS)) $(if $(FILES),--files $(FILES)) $(if $(KNOWN),--known $(KNOWN))

.PHONY: bench-datasets
bench-datasets: $(VENV)/.dev-installed ## Seconds to load the code location with declared datasets: DATASETS=50
	@$(BENCHMARK) datasets $(if $(DATASETS),--datasets $(DATASETS))

.PHONY: bench-console
bench-console: $(VENV)/.dev-installed ## Milliseconds of every page of the operations console: FILES=100000 EVENTS=10000000
	@$(BENCHMARK) console $(if $(FILES),--files $(FILES)) $(if $(EVENTS),--events $(EVENTS))

.PHONY: bench-scaling
bench-scaling: $(VENV)/.benchmarks-installed ## Files a second with 1, 2 and 4 runs; limits of PostgreSQL and Kafka alone: FILES=1000 ROWS=1000
	@$(BENCHMARK) scaling $(if $(ROWS),--rows $(ROWS)) $(if $(FILES),--files $(FILES))
