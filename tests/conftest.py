"""Settings that every test runs under."""

import os

# Before torch is imported, and inherited by the processes that tests start: two test workers with
# as many threads as cores each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
