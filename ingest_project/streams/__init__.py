"""Store topics in sinks, each offset exactly once: positions, the engine, and the sensor of every stream."""
