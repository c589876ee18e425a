"""Where files come from: one module per kind of source behind the protocol in `protocol`, opened through `registry`."""
