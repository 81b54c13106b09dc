"""The benchmark harness behind `pgtasks bench` and `python -m benchmarks.claim` and its like.

It works in a database of its own, which it makes and drops. Where a figure is a ratio, both sides were
measured in the same run, in turns: machines differ, and one machine differs from hour to hour.
"""
