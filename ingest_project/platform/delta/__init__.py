"""Delta tables: idempotent appends, locations, schemas, maintenance."""
