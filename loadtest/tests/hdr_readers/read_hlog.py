"""Reads a .hlog with the HdrHistogram project's Python package and prints, as JSON, what it found for each tag."""

import json
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

PERCENTILES = [50, 90, 99, 99.9, 99.99]

path = sys.argv[1]
reader = HistogramLogReader(path, HdrHistogram(1, 60_000_000_000, 3))
tags = {}
while (interval := reader.get_next_interval_histogram()) is not None:
    tag = tags.setdefault(interval.get_tag(), {"intervals": 0, "histogram": HdrHistogram(1, 60_000_000_000, 3)})
    tag["intervals"] += 1
    tag["histogram"].add(interval)
json.dump(
    {
        "start_time_s": reader.get_start_time_sec(),
        "tags": {
            name: {
                "intervals": tag["intervals"],
                "count": tag["histogram"].get_total_count(),
                "max_ns": tag["histogram"].get_max_value(),
                "percentiles_ns": [tag["histogram"].get_value_at_percentile(p) for p in PERCENTILES],
            }
            for name, tag in tags.items()
        },
    },
    sys.stdout,
)
