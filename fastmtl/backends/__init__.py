"""Implementations of the ops: one module a backend, each with every op of `contract.SCHEMAS`.

A backend module offers ``unavailable(device, dtype) -> str | None`` and one function an op, with the arguments of the schema.
"""
