"""Which engine a measurement starts."""

from __future__ import annotations

from coatcheck.bench.engine.config import BenchConfig
from coatcheck.bench.engine.http import HttpDriver
from coatcheck.bench.engine.measure import Open
from coatcheck.bench.engine.tensors import TensorDriver
from coatcheck.bench.engine.workload import TensorWorkload, http_bodies
from coatcheck.engine.model_files import check_divides, read_config


def starter(config: BenchConfig) -> Open:
    """Makes the workload; what it returns starts one engine per call. Raises ConfigError."""
    check_divides(read_config(config.model), config.tp)
    workload = TensorWorkload(config)  # refuses what the model cannot take
    if config.input == "tensors":
        return lambda trace, verify: TensorDriver(config, workload, trace, verify)
    bodies = http_bodies(config, workload.clip)
    return lambda trace, verify: HttpDriver(config, bodies, workload, trace, verify)
