"""Evaluate one or two models on a labelled table, with a report.

ray job submit --working-dir . -- python jobs/evaluate.py jobs/evaluate.yaml model.name=s3://bucket/tuned/model data.path=s3://bucket/test.parquet output.path=s3://bucket/report/
"""

import sys

from raybert.__main__ import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
