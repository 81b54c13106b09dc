"""Real process trees and real signals; see ``tests/fixtures/workers.py``."""

from tests.fixtures.workers import app, gate, runs, workers

__all__ = ["app", "gate", "runs", "workers"]
