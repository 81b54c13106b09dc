"""The worker: a parent that claims jobs and writes outcomes back, and children that run them.

``ledger`` decides, ``parent`` performs; ``child`` and ``runners`` run jobs. Internal.
"""
