"""The stub benchmark, without its bad luck."""

from bench.options import Options
from bench.progress import Steps
from bench.results import BenchmarkResult
from tests.bench_stub import ABOUT, RATES, TITLE, measure

__all__ = ["ABOUT", "TITLE", "run"]


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Whatever the seed."""
    await measure(result, options, progress, RATES)
