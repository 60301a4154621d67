"""One command for a machine with a GPU: ``python -m benchmarks.gpu_check`` checks and times everything, in under 10 minutes.

`sections` lists what is done; each section is a list of items, which `running` works off, by default in processes of their
own (`isolated`, `child`), as a faulty kernel can hang or spoil its process. `machine` is all that touches clocks, caches,
graphs and streams; tests put another in its place.
"""
