"""Speed as a ratio: both sides in one run, on one machine, with the limit beside them."""

from dinoprobe.bench.embed import SCHEMA, EmbedBench, run_embed_bench
from dinoprobe.bench.serve import ServeBench, run_serve_bench

__all__ = ["SCHEMA", "EmbedBench", "ServeBench", "run_embed_bench", "run_serve_bench"]
