"""One file a benchmark: TITLE, ABOUT and ``async def run(result, options, progress)``."""
