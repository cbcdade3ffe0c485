"""The launcher: the one place that sees all stages. Starts the processes, watches them, and ends them."""
