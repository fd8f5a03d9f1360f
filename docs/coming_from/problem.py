"""A batch of four regression tasks and a small network's weights, for all libraries."""

import numpy as np

rng = np.random.default_rng(0)
support_x, query_x = rng.uniform(-5, 5, (2, 4, 10, 1)).astype(np.float32)  # [T, N, 1]
amplitude = rng.uniform(0.1, 5, (4, 1, 1)).astype(np.float32)
support_y, query_y = amplitude * np.sin(support_x), amplitude * np.sin(query_x)
hidden = rng.normal(0, 0.5, (1, 40)).astype(np.float32)
output = rng.normal(0, 0.2, (40, 1)).astype(np.float32)
