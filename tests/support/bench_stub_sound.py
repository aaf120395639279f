"""The stub benchmark, without its bad luck."""

from bench.method.options import Options
from bench.method.progress import Steps
from bench.report.results import BenchmarkResult
from tests.support.bench_stub import ABOUT, RATES, TITLE, measure

__all__ = ["ABOUT", "TITLE", "run"]


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Whatever the seed."""
    await measure(result, options, progress, RATES)
