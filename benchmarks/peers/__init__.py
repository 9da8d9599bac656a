"""The contenders of ``benchmarks/flows.py``: one module a library, each with ``build(work) -> Contender``."""
