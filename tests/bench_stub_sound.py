"""The stub benchmark, without its bad luck."""

from bench.options import Options
from bench.progress import Steps
from bench.results import BenchmarkResult
from tests.bench_stub import RATES, result


async def run(options: Options, progress: Steps) -> BenchmarkResult:
    """Whatever the seed."""
    return await result(options, progress, RATES)
