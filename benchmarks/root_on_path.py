"""Imported first by benchmarks that share code with the tests, or their processes: `import tests` works after it."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
